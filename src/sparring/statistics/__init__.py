"""Computes the numbers of the tables: it turns frames of predictions into frames of numbers. It runs no model."""

from sparring.statistics.accuracy import (
    LEVEL,
    SPREAD,
    accuracies,
    as_if_guessed,
    comparisons,
    over_trainings,
    paired_difference,
    wilson,
)
from sparring.statistics.calibration import calibration_error
from sparring.statistics.detectors import (
    ALL,
    accuse,
    auroc,
    detector_metrics,
    false_positives,
    joint_robustness,
    matched,
    pair_accuracy,
    roc,
    roc_of_pairs,
    separation,
)
from sparring.statistics.mixture import detector_rows, draw_mixture

__all__ = [
    "ALL",
    "LEVEL",
    "SPREAD",
    "accuracies",
    "accuse",
    "as_if_guessed",
    "auroc",
    "calibration_error",
    "comparisons",
    "detector_metrics",
    "detector_rows",
    "draw_mixture",
    "false_positives",
    "joint_robustness",
    "matched",
    "over_trainings",
    "pair_accuracy",
    "paired_difference",
    "roc",
    "roc_of_pairs",
    "separation",
    "wilson",
]
