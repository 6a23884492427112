"""Computes accuracies and their intervals from stored predictions. Rows are joined by `index`, never by position.

A frame of predictions has one row per (structure, split, seed, attack, index) with at least these columns and `label`,
`prediction`, `correct`; a frame of stored attacks one row per (split, attack, index) with `label`, `prediction` (of the
source model), `l2` and `linf` (in [0, 1] units).
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import binomtest, norm, t

LEVEL = 0.95
POINT = 0.01  # of accuracy: structures that differ by less are equivalent
# The standard deviation, over seeds, of a difference in accuracy between two structures, each trained once with the
# same seed. It is used where structures are trained once, so that it cannot be measured.
# From the mixtures of docs/results/cifar_small/seeds.md: the root mean square over the three pairs of `adv`, `ours` and
# `classical`, on test and on held-out images. Three structures with three seeds leave (3 - 1) (3 - 1) degrees of
# freedom, as pairs share structures and the splits share nets.
SPREAD, SPREAD_FREEDOM = 0.020, 4


def wilson(successes: int, n: int) -> tuple[float, float]:
    """Return the 95 % interval of a share (Wilson, 1927): (low, high), both in 0 to 1; nan for n = 0."""
    if n == 0:
        return float("nan"), float("nan")
    interval = binomtest(successes, n).proportion_ci(LEVEL, method="wilson")
    return float(interval.low), float(interval.high)


def accuracies(rows: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Return the accuracy of each group of predictions; index: `by`, columns: accuracy, ci_low, ci_high, images, sd.

    With several seeds the accuracy is their mean and `sd` their standard deviation (one degree of freedom less than
    seeds; nan for a single one); the interval counts each image once, as seeds add no images.
    """
    grouped = rows.groupby(list(by), sort=False)
    table = pd.DataFrame({"accuracy": grouped["correct"].mean(), "images": grouped["index"].nunique()})
    intervals = [
        wilson(round(accuracy * images), images)
        for accuracy, images in zip(table["accuracy"], table["images"], strict=True)
    ]
    table[["ci_low", "ci_high"]] = np.array(intervals, float).reshape(-1, 2)
    trainings = rows.groupby([*by, "seed"], sort=False)["correct"].mean()
    table["sd"] = trainings.groupby(level=list(by), sort=False).std()
    return table[["accuracy", "ci_low", "ci_high", "images", "sd"]]


def as_if_guessed(rows: pd.DataFrame) -> float | None:
    """Return the accuracy of guessing if the 95 % interval of a model's accuracy does not lie above it, else None.

    rows: predictions of one model on clean images.  To guess is to name the most frequent class for every image.
    """
    if rows.empty:
        return None
    guessed = float(rows["label"].value_counts(normalize=True).max())
    low, _ = wilson(int(rows["correct"].sum()), len(rows))
    return guessed if low <= guessed else None


def over_trainings(value: float, low: float, high: float, sd: float, trainings: int) -> tuple[float, float]:
    """Return the 95 % interval (low, high) of an accuracy, or of a difference, over images and over trainings.

    low, high: the 95 % interval over images alone.  sd: the standard deviation between the trainings; SPREAD takes its
    place where there is only one. The trainings alone give Student's t-interval. Its half-width and the distance from
    the value to each end of the interval over images are added in squares, as independent errors are (Zou & Donner,
    2008).
    """
    spread, freedom = (sd, trainings - 1) if trainings > 1 else (SPREAD, SPREAD_FREEDOM)
    half = float(t.ppf((1 + LEVEL) / 2, freedom)) * spread / math.sqrt(trainings)
    return value - math.hypot(value - low, half), value + math.hypot(high - value, half)


def paired_difference(gains: np.ndarray) -> dict[str, float]:
    """Compare the accuracies of two structures on the same images, and tell whether chance explains the difference.

    gains: (images, trainings): 1 where only the first structure gets an image right, -1 where only the other, else 0.
    Returns a dict, whose values are nan or 0 without images:
    difference, first accuracy minus the other; difference_sd, its standard deviation between trainings, nan for one;
    image_low, image_high: the 95 % interval over images alone, that of Bonett & Price (2012) for paired shares, which
    adds one image to each side of the disagreements, so that it holds for few images too;
    difference_low, difference_high: the interval of `over_trainings` for several trainings, for one that over images;
    side: 1 where the interval of `over_trainings`, for one training too, is above zero, -1 where it is below, else 0;
    equivalent: 1 where several trainings were compared and their interval lies within ±POINT, else 0;
    trainings: their number.
    """
    images, trainings = gains.shape
    if not images:
        columns = ("difference", "difference_sd", "image_low", "image_high", "difference_low", "difference_high")
        return dict.fromkeys(columns, math.nan) | {"side": 0, "equivalent": 0, "trainings": 0}
    with_two = np.append(gains.mean(1), [1.0, -1.0])
    half = norm.ppf((1 + LEVEL) / 2) * with_two.std() / np.sqrt(len(with_two))
    over_images = float(with_two.mean() - half), float(with_two.mean() + half)
    difference = float(gains.mean())
    sd = float(gains.mean(0).std(ddof=1)) if trainings > 1 else math.nan
    low, high = over_trainings(difference, *over_images, sd, trainings)
    interval = (low, high) if trainings > 1 else over_images
    return {
        **{"difference": difference, "difference_sd": sd, "image_low": over_images[0], "image_high": over_images[1]},
        **{"difference_low": interval[0], "difference_high": interval[1], "side": int(low > 0) - int(high < 0)},
        **{"equivalent": int(trainings > 1 and low > -POINT and high < POINT), "trainings": trainings},
    }


COMPARED = ["structure", "other", "difference", "difference_sd", "difference_low", "difference_high"]
COMPARED += ["image_low", "image_high", "side", "equivalent", "trainings", "more", "less", "p", "images"]


def comparisons(rows: pd.DataFrame, structures: Sequence[str], by: Sequence[str]) -> pd.DataFrame:
    """Compare every structure with every other on the same images, in both directions.

    rows: predictions; within each group of `by`, one attack per image.  Index: `by`, structure, other.
    Trainings are paired by seed; a structure with a single one, as the baseline, is paired with each of the other's.
    Columns: those of `paired_difference`; more, less: the numbers of images that only `structure`, only `other` gets
    right, or gets right more often over several trainings; p: the p-value of McNemar's (1947) exact, two-sided test, 1
    where they never disagree, nan without images; images: their number.
    """
    records: list[dict[str, Any]] = []
    for key, group in rows.groupby(list(by), sort=False):
        right = group.pivot(index="index", columns=["structure", "seed"], values="correct").astype(float)
        for structure, other in itertools.permutations(structures, 2):
            names = dict(zip([*by, "structure", "other"], [*key, structure, other], strict=True))
            gains = _gains(right, structure, other)
            records.append({**names, **paired_difference(gains), **_mcnemar(gains), "images": len(gains)})
    return pd.DataFrame(records, columns=[*by, *COMPARED]).set_index([*by, "structure", "other"])


def _gains(right: pd.DataFrame, structure: str, other: str) -> np.ndarray:
    """Return the gains that `paired_difference` takes.  right: one row per image, columns structure and seed."""
    if not {structure, other} <= set(right.columns.get_level_values("structure")):
        return np.empty((0, 0))
    first, second = right[structure], right[other]
    if min(first.shape[1], second.shape[1]) > 1:
        seeds = first.columns.intersection(second.columns)
        first, second = first[seeds], second[seeds]
    gains: np.ndarray = first.to_numpy() - second.to_numpy()
    return gains


def _mcnemar(gains: np.ndarray) -> dict[str, float]:
    total = gains.sum(1)
    more, less = int((total > 0).sum()), int((total < 0).sum())
    p = float(binomtest(more, more + less).pvalue) if more + less else 1.0
    return {"more": more, "less": less, "p": p if len(gains) else math.nan}


def interval_columns(name: str) -> list[str]:
    """Return the names of the columns for a number, the ends of its interval and its standard deviation."""
    return [name, f"{name}_low", f"{name}_high", f"{name}_sd"]


def accuracy_columns(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """Rename the columns of a table from `accuracies` after `name`, and drop the number of images."""
    return table[["accuracy", "ci_low", "ci_high", "sd"]].set_axis(interval_columns(name), axis=1)


def with_index(table: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    """Turn a table's index of tuples into levels of these names, in place."""
    table.index = pd.MultiIndex.from_tuples(list(table.index), names=names)
    return table
