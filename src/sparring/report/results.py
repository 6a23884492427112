"""Gather the predictions, and the numbers that several sections of the report need."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from sparring import statistics, store
from sparring.layout import Layout
from sparring.params import Params
from sparring.params.names import BASELINE, CLEAN, EVALUATED_SPLITS, MIXTURE
from sparring.report import escape, read
from sparring.report.table import ACCURACY, full


@dataclass(frozen=True)
class Results:
    """The data of one run. The docstrings of `statistics` describe the frames."""

    params: Params
    layout: Layout
    clean: dict[str, store.Images]  # by split, without pixels
    predictions: pd.DataFrame
    stored: pd.DataFrame
    mixture: pd.DataFrame  # from `draw_mixture`
    left_out: Mapping[str, str]  # parts without rows → why

    @property
    def structures(self) -> list[str]:
        return list(self.params.structures)

    @property
    def attacks(self) -> list[str]:
        return self.params.all_attacks

    @property
    def detectors(self) -> list[str]:
        return read.detectors(self.params)

    @property
    def classes(self) -> list[str]:
        return [str(name) for name in self.clean["train"].metadata["classes"]]

    @property
    def source_clean(self) -> pd.DataFrame:
        """Return the predictions of the pretrained net, against which the stored attacks were made, on clean images."""
        return self.predictions[(self.predictions["structure"] == BASELINE) & (self.predictions["attack"] == CLEAN)]

    @cached_property
    def attack_facts(self) -> pd.DataFrame:
        """Return what each stored attack does: the columns split, attack and those of the function `attack_facts`."""
        facts = attack_facts(self.stored, self.source_clean)
        return full(facts, [EVALUATED_SPLITS, self.attacks], ["split", "attack"])

    @cached_property
    def on_mixture(self) -> pd.DataFrame:
        """Compare the structures with each other on the mixture: statistics.comparisons by split and attack."""
        rows = self.mixture.assign(attack=MIXTURE)
        return statistics.comparisons(rows, self.structures, ["split", "attack"])

    def compared(self, split: str, structure: str, other: str) -> dict[str, Any]:
        """Return the row of `on_mixture` that compares a structure with another."""
        return {str(key): value for key, value in self._mixture_comparisons[(split, MIXTURE, structure, other)].items()}

    @cached_property
    def _mixture_comparisons(self) -> dict[Any, dict[Any, Any]]:
        return self.on_mixture.to_dict("index")

    @cached_property
    def on_attacks(self) -> pd.DataFrame:
        """Compare the structures on clean images and under each stored attack: comparisons by split and attack."""
        return statistics.comparisons(self.predictions, self.structures, ["split", "attack"])

    @cached_property
    def all_comparisons(self) -> pd.DataFrame:
        """Compare the structures with each other on the mixture, on clean images and under each stored attack."""
        return pd.concat([self.on_mixture, self.on_attacks])

    @cached_property
    def detected(self) -> dict[tuple[str, str], dict[str, float]]:
        """Measure how well each structure's detector does on the mixture: `detector_facts` by structure and split."""
        by_group = dict(list(self.mixture.groupby(["structure", "split"])))
        no_rows = self.mixture.iloc[:0]
        return {
            (name, split): detector_facts(by_group.get((name, split), no_rows))
            for name in self.detectors
            for split in EVALUATED_SPLITS
        }

    def why_left_out(self, part: str) -> str:
        """Return the sentence for a section that was left out: the reason."""
        return f"Left out of this run: {escape.markdown(self.left_out[part])}."


def gather(params: Params, layout: Layout, left_out: Mapping[str, str]) -> Results:
    """Read a run's results. Raises InputError where a part is missing or does not fit the clean images."""
    clean = read.clean(layout)
    stored = read.stored(params, layout, clean)
    parts = [read.predictions(params, layout, structure, clean) for structure in params.structures]
    predictions = pd.concat(parts, ignore_index=True)
    mixture = draw_mixture(params, params.mixture.adv_ratio, clean, predictions, stored)
    return Results(params, layout, clean, predictions, stored, mixture, left_out)


def draw_mixture(
    params: Params, adv_ratio: float, clean: dict[str, store.Images], predictions: pd.DataFrame, stored: pd.DataFrame
) -> pd.DataFrame:
    """Return the predictions on a mixture with this adversarial share, and with the column `adversarial`.

    The mixture is the same for every structure: each image once, clean or under one of the seen attacks.
    """
    draws = [
        statistics.draw_mixture(
            clean[split].index, clean[split].label, list(params.attacks), adv_ratio, params.seed, split
        ).assign(split=split)
        for split in EVALUATED_SPLITS
    ]
    mixture = predictions.merge(pd.concat(draws), on=["split", "index", "attack"], validate="many_to_one")
    return statistics.detector_rows(mixture, stored)


def detector_verdicts(mixture: pd.DataFrame) -> pd.DataFrame:
    """Return a mixture whose column `correct` is of the detector's verdicts instead of the classifier's."""
    return mixture.assign(correct=(mixture["detector_score"] > 0.5) == mixture["adversarial"])


def detector_facts(mixture: pd.DataFrame) -> dict[str, float]:
    """Measure how well a detector does on a mixture; nan stands for what is not defined.

    The keys are accuracy, ci_low, ci_high and sd of its verdicts, and majority, auroc and tpr_at_fpr05 of
    statistics.detector_metrics, which are means over the trainings.

    mixture: the rows of one structure and split.
    """
    accuracy = statistics.accuracies(detector_verdicts(mixture), ["structure"])[list(ACCURACY)]
    facts = dict(zip(ACCURACY, accuracy.to_numpy(float)[0] if len(accuracy) else [np.nan] * 4, strict=True))
    trainings = [
        statistics.detector_metrics(rows["adversarial"].to_numpy(bool), rows["detector_score"].to_numpy(float))
        for _, rows in mixture.groupby("seed")
    ] or [statistics.detector_metrics(np.empty(0, bool), np.empty(0))]
    for name in ("majority", "auroc", "tpr_at_fpr05"):
        facts[name] = np.array([metrics[name] for metrics in trainings], float).mean()
    return {name: float(value) for name, value in facts.items()}


def attack_facts(stored: pd.DataFrame, source_clean: pd.DataFrame) -> pd.DataFrame:
    """Measure what each stored attack does to the source model; one row per (split, attack), which are the index.

    stored: the stored attacks.  source_clean: the source model's predictions on the clean images.
    Columns: success (share of the images classified correctly when clean that are classified wrongly as stored),
    ci_low, ci_high, correct_before (its denominator), success_float and success_rounded (the same share before storage,
    and after mere rounding; NaN where a store does not tell, as of bounded attacks), l2_median, linf_max (over all
    images, [0, 1] units), unchanged (images equal to the clean one), images.
    """
    before = source_clean[["split", "index", "correct"]].drop_duplicates(["split", "index"])
    rows = stored.merge(before, on=["split", "index"], validate="many_to_one")
    fooled = {
        name: rows["correct"] & (rows[column] != rows["label"])
        for name, column in (
            ("fooled", "prediction"),
            ("fooled_float", "prediction_float"),
            ("fooled_rounded", "prediction_rounded"),
        )
    }
    rows = rows.assign(**fooled, unchanged=rows["linf"] == 0)
    grouped = rows.groupby(["split", "attack"], sort=False)
    table = pd.DataFrame(
        {
            "fooled": grouped["fooled"].sum(),
            "correct_before": grouped["correct"].sum(),
            "l2_median": grouped["l2"].median().astype(float),
            "linf_max": grouped["linf"].max().astype(float),
            "unchanged": grouped["unchanged"].sum(),
            "images": grouped.size(),
        }
    )
    counts = list(zip(table["fooled"].astype(int), table["correct_before"].astype(int), strict=True))
    table["success"] = [fooled / correct if correct else float("nan") for fooled, correct in counts]
    for state in ("float", "rounded"):
        is_known = grouped[f"prediction_{state}"].count() == table["images"]
        share = grouped[f"fooled_{state}"].sum() / table["correct_before"].replace(0, np.nan)
        table[f"success_{state}"] = share.where(is_known)
    table[["ci_low", "ci_high"]] = np.array([statistics.wilson(*count) for count in counts], float).reshape(-1, 2)
    return table[
        [
            *("success", "ci_low", "ci_high", "correct_before", "success_float", "success_rounded"),
            *("l2_median", "linf_max", "unchanged", "images"),
        ]
    ].sort_index()
