"""Every figure of the report, as expressions over stored predictions. Rows are joined by `index`, never by position.

A frame of predictions has one row per (structure, split, seed, attack, index) with at least these columns and `label`,
`prediction`, `correct`; a frame of stored attacks one row per (split, attack, index) with `label`, `prediction` (of the
source model), `l2` and `linf` (in [0, 1] units).
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from scipy.stats import binomtest, norm, t

from sparring.params.errors import InputError, reason
from sparring.params.names import CLEAN

LEVEL = 0.95
POINT = 0.01  # of accuracy: structures that differ by less are equivalent
# How far a difference in accuracy between two structures, each trained once with the same seed, moves from one seed to
# another, as a standard deviation. It stands in where structures are trained once, so that nothing can be measured.
# From the mixtures of docs/results/cifar_small/seeds.md: the root mean square over the three pairs of `adv`, `ours` and
# `classical`, on test and on held-out images. Three structures with three seeds leave (3 - 1) (3 - 1) degrees of
# freedom, as pairs share structures and the splits share nets.
SPREAD, SPREAD_FREEDOM = 0.020, 4


def wilson(successes: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson, 1927): (low, high), both in 0 to 1; nan for n = 0."""
    if n == 0:
        return float("nan"), float("nan")
    interval = binomtest(successes, n).proportion_ci(LEVEL, method="wilson")
    return float(interval.low), float(interval.high)


def read(path: Path, columns: list[str]) -> pd.DataFrame:
    """These columns of a file of predictions; InputError where it is missing or cannot be read."""
    try:
        return pd.read_parquet(path, columns=columns)
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing; `dvc repro` makes it") from error
    except (pa.ArrowException, ValueError, OSError) as error:
        raise InputError(f"{path} cannot be read ({reason(error)}); delete it and run `dvc repro`") from error


def no_rows(columns: Sequence[str], types: Mapping[str, str]) -> pd.DataFrame:
    """Predictions of nothing: these columns and `correct`; numbers where `types` does not say otherwise."""
    empty = {
        name: pd.Series(dtype=types.get(name, "float64" if name in ("l2", "linf") else "int64")) for name in columns
    }
    return pd.DataFrame(empty | {"correct": pd.Series(dtype=bool)})


def check_complete(
    predictions: pd.DataFrame, path: Path, split: str, index: np.ndarray, label: np.ndarray, attacks: Sequence[str]
) -> None:
    """Raise InputError unless every seed predicts each image of the split exactly once, clean and under each attack.

    predictions: as read from `path`.  index, label: (N,), the clean images of the split.
    """
    here = predictions[predictions["split"] == split]
    if len(index) and here.empty:
        raise InputError(f"{path} has no predictions for the {split} images; run `dvc repro`")
    groups = here.groupby(["seed", "attack"])["index"]
    found = {key: group.to_numpy() for key, group in groups}
    for seed, attack in itertools.product(sorted(here["seed"].unique()), (CLEAN, *attacks)):
        rows = found.get((seed, attack), np.empty(0, np.int64))
        missing = np.setdiff1d(index, rows)
        where = f"{path}: seed {seed}, {split}, {attack}"
        if len(missing):
            raise InputError(f"{where}: {len(missing)} of {len(index)} images have no prediction; run `dvc repro`")
        if len(rows) != len(index):
            raise InputError(f"{where}: {len(rows)} predictions for {len(index)} images; run `dvc repro`")
    known = pd.Series(label, index=index)
    if (known.reindex(here["index"]).to_numpy() != here["label"].to_numpy()).any():
        raise InputError(f"{path}: labels of {split} differ from the clean images' labels; run `dvc repro`")


def accuracies(rows: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Accuracy of each group of predictions; index: `by`, columns: accuracy, ci_low, ci_high, images, sd.

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
    """The accuracy of guessing, where that of a model is not above it by more than its 95 % interval; else None.

    rows: predictions of one model on clean images.  To guess is to name the most frequent class for every image.
    """
    if rows.empty:
        return None
    guessed = float(rows["label"].value_counts(normalize=True).max())
    low, _ = wilson(int(rows["correct"].sum()), len(rows))
    return guessed if low <= guessed else None


def over_trainings(value: float, low: float, high: float, sd: float, trainings: int) -> tuple[float, float]:
    """The 95 % interval of an accuracy, or of a difference, over other images and over other trainings: (low, high).

    low, high: the 95 % interval over images alone.  sd: the standard deviation between the trainings; where there is
    but one, SPREAD takes its place. The trainings alone give Student's t-interval. Its half-width and the distance of
    each end of the other from the value are added in squares, as independent errors are (Zou & Donner, 2008).
    """
    spread, freedom = (sd, trainings - 1) if trainings > 1 else (SPREAD, SPREAD_FREEDOM)
    half = float(t.ppf((1 + LEVEL) / 2, freedom)) * spread / math.sqrt(trainings)
    return value - math.hypot(value - low, half), value + math.hypot(high - value, half)


def paired_difference(gains: np.ndarray) -> dict[str, float]:
    """Accuracy of a structure minus that of another on the same images, and whether chance could have made it.

    gains: (images, trainings): 1 where only the first of them gets an image right, -1 where only the other, else 0.
    Returns, nan or 0 without images:
    difference, and difference_sd, its standard deviation between trainings, nan for a single one;
    image_low, image_high: the 95 % interval over images alone, that of Bonett & Price (2012) for paired shares, which
    adds one image to each side of the disagreements, so that it holds for few images too;
    difference_low, difference_high: of several trainings as `over_trainings`, of a single one the same as over images;
    side: 1 above zero and -1 below it, beyond chance, else 0: the side of `over_trainings`, for a single training too;
    equivalent: 1 where several trainings were compared and their interval lies within ±POINT, else 0;
    trainings.
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
    shown = (low, high) if trainings > 1 else over_images
    return {
        **{"difference": difference, "difference_sd": sd, "image_low": over_images[0], "image_high": over_images[1]},
        **{"difference_low": shown[0], "difference_high": shown[1], "side": int(low > 0) - int(high < 0)},
        **{"equivalent": int(trainings > 1 and low > -POINT and high < POINT), "trainings": trainings},
    }


COMPARED = ["structure", "other", "difference", "difference_sd", "difference_low", "difference_high"]
COMPARED += ["image_low", "image_high", "side", "equivalent", "trainings", "more", "less", "p", "images"]


def comparisons(rows: pd.DataFrame, structures: Sequence[str], by: Sequence[str]) -> pd.DataFrame:
    """Every structure against every other on the same images, in both directions.

    rows: predictions; within each group of `by`, one attack an image.  Index: `by`, structure, other.
    Trainings are paired by seed; a structure with a single one, as the baseline is, meets each of the other's with it.
    Columns: those of `paired_difference`; more, less: images that only `structure`, only `other` gets right, of several
    trainings those that the one gets right more often than the other; p: of McNemar's (1947) exact, two-sided test, how
    probable a split at least as uneven is where neither is better, 1 where they never disagree, nan without images;
    images.
    """
    found: list[dict[str, Any]] = []
    for key, group in rows.groupby(list(by), sort=False):
        right = group.pivot(index="index", columns=["structure", "seed"], values="correct").astype(float)
        for structure, other in itertools.permutations(structures, 2):
            names = dict(zip([*by, "structure", "other"], [*key, structure, other], strict=True))
            gains = _gains(right, structure, other)
            found.append({**names, **paired_difference(gains), **_mcnemar(gains), "images": len(gains)})
    return pd.DataFrame(found, columns=[*by, *COMPARED]).set_index([*by, "structure", "other"])


def _gains(right: pd.DataFrame, structure: str, other: str) -> np.ndarray:
    """(images, trainings), as `paired_difference` takes it; right: a row an image, columns structure and seed."""
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


def attack_facts(stored: pd.DataFrame, source_clean: pd.DataFrame) -> pd.DataFrame:
    """What each stored attack does to the source model; one row per (split, attack), which are the index.

    stored: the stored attacks.  source_clean: the source model's predictions on the clean images.
    Columns: success (share of the images classified correctly when clean that are classified wrongly as stored),
    ci_low, ci_high, correct_before (its denominator), success_float and success_rounded (the same share before storage,
    and after mere rounding), l2_median, linf_max (over all images, [0, 1] units), unchanged (images equal to the clean
    one), images.
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
    for way in ("float", "rounded"):
        table[f"success_{way}"] = grouped[f"fooled_{way}"].sum() / table["correct_before"].replace(0, np.nan)
    table[["ci_low", "ci_high"]] = np.array([wilson(*count) for count in counts], float).reshape(-1, 2)
    return table[
        [
            *("success", "ci_low", "ci_high", "correct_before", "success_float", "success_rounded"),
            *("l2_median", "linf_max", "unchanged", "images"),
        ]
    ].sort_index()


def interval_columns(name: str) -> list[str]:
    return [name, f"{name}_low", f"{name}_high", f"{name}_sd"]


def renamed(found: pd.DataFrame, name: str) -> pd.DataFrame:
    """What `accuracies` found, without the numbers of images, as columns of that name."""
    return found[["accuracy", "ci_low", "ci_high", "sd"]].set_axis(interval_columns(name), axis=1)


def by_columns(table: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    table.index = pd.MultiIndex.from_tuples(list(table.index), names=names)
    return table
