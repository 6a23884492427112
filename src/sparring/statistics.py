"""Every figure of the report, as expressions over stored predictions. Rows are joined by `index`, never by position.

A frame of predictions has one row per (structure, split, seed, attack, index) with at least these columns and `label`,
`prediction`, `correct`; a frame of stored attacks one row per (split, attack, index) with `label`, `prediction` (of the
source model), `l2` and `linf` (in [0, 1] units).
"""

import itertools
import zlib
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import binomtest, norm
from sklearn.metrics import roc_auc_score, roc_curve

from sparring.params import CLEAN, InputError

LEVEL = 0.95


def wilson(successes: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson, 1927): (low, high), both in 0 to 1; nan for n = 0."""
    if n == 0:
        return float("nan"), float("nan")
    interval = binomtest(successes, n).proportion_ci(LEVEL, method="wilson")
    return float(interval.low), float(interval.high)


def draw_mixture(
    index: np.ndarray, label: np.ndarray, attacks: Sequence[str], adv_ratio: float, seed: int, split: str
) -> pd.DataFrame:
    """Decide for each image, once for all structures, whether the mixture shows it clean or under which attack.

    index, label: (N,), the images of a split.  adv_ratio: the share shown attacked.
    Returns columns index, attack; a function of the set of images, the set of attacks, adv_ratio, seed and split.

    Images are lined up by class, shuffled within it, and every (1 / adv_ratio)-th of the line is attacked, by the
    attacks in turn. A class is a piece of that line, so the number attacked, and the number of each attack among them,
    are their exact share rounded up or down, overall as well as in each class.
    """
    generator = np.random.default_rng([seed, zlib.crc32(f"mixture/{split}".encode())])
    by_index = np.argsort(index, kind="stable")
    shuffled = by_index[generator.permutation(len(index))]
    line = shuffled[np.argsort(label[shuffled], kind="stable")]
    turn = generator.permutation(sorted(attacks))
    share = Fraction(str(adv_ratio)).limit_denominator(10**6)  # whole numbers: floats would round 15 × 0.3 either way
    attacked_before = (2 * np.arange(len(line) + 1) * share.numerator + share.denominator) // (2 * share.denominator)
    attacked = np.diff(attacked_before) > 0
    names = np.where(attacked, turn[attacked_before[:-1] % len(turn)], CLEAN)
    return pd.DataFrame({"index": index[line], "attack": names.astype(str)})


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
    """Accuracy of each group of predictions; index: `by`, columns: accuracy, ci_low, ci_high, images.

    Several seeds are pooled for the accuracy; the interval counts each image once, as seeds add no images.
    """
    grouped = rows.groupby(list(by), sort=False)
    table = pd.DataFrame({"accuracy": grouped["correct"].mean(), "images": grouped["index"].nunique()})
    intervals = [
        wilson(round(accuracy * images), images)
        for accuracy, images in zip(table["accuracy"], table["images"], strict=True)
    ]
    table[["ci_low", "ci_high"]] = np.array(intervals, float).reshape(-1, 2)
    return table[["accuracy", "ci_low", "ci_high", "images"]]


def paired_difference(rows: pd.DataFrame, structure: str, other: str) -> tuple[float, float, float]:
    """Accuracy of `structure` minus that of `other` on the same images: (difference, ci_low, ci_high), 95 %.

    rows: predictions with one attack an image, as on the mixture. The interval is Bonett & Price's (2012) for paired
    shares, which adds one image to each side of the disagreements: it holds for few images too. nan without images.
    """
    share = rows.groupby(["structure", "index"])["correct"].mean()
    if structure not in share.index or other not in share.index:
        return float("nan"), float("nan"), float("nan")
    gains = (share.loc[structure] - share.loc[other]).to_numpy(float)
    with_two = np.append(gains, [1.0, -1.0])
    half = norm.ppf((1 + LEVEL) / 2) * with_two.std() / np.sqrt(len(with_two))
    return float(gains.mean()), float(with_two.mean() - half), float(with_two.mean() + half)


def mcnemar(rows: pd.DataFrame, structure: str, other: str) -> tuple[int, int, float]:
    """McNemar's (1947) exact, two-sided test of two structures on the same images: (more, less, p).

    rows: predictions with one attack an image.  more, less: images that only `structure`, only `other` gets right; of
    several trainings, those that it gets right more often.  p is 1 where they never disagree, nan without images.
    """
    share = rows.groupby(["structure", "index"])["correct"].mean()
    if structure not in share.index or other not in share.index:
        return 0, 0, float("nan")
    gains = share.loc[structure] - share.loc[other]
    more, less = int((gains > 0).sum()), int((gains < 0).sum())
    return more, less, float(binomtest(more, more + less).pvalue) if more + less else 1.0


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


def detector_rows(mixture: pd.DataFrame, stored: pd.DataFrame) -> pd.DataFrame:
    """The mixture's predictions with a column `adversarial`: what a detector should say of the image.

    An image that its attack left unchanged is a clean image, and counts as one.
    """
    changed = stored[["split", "attack", "index", "linf"]]
    rows = mixture.merge(changed, on=["split", "attack", "index"], how="left", validate="many_to_one")
    return rows.assign(adversarial=rows["linf"].fillna(0) > 0)


def detector_metrics(adversarial: np.ndarray, score: np.ndarray) -> dict[str, float | None]:
    """How well a score tells adversarial from clean images.

    adversarial: (N,) bool.  score: (N,) probability of being adversarial.
    Returns accuracy (at 0.5), majority (what always giving the commoner answer scores), auroc, and tpr_at_fpr05 (the
    most adversarial images found with at most 5 % of the clean ones accused); None where it is not defined.
    """
    if not len(score):
        return {"accuracy": None, "majority": None, "auroc": None, "tpr_at_fpr05": None}
    share = float(adversarial.mean())
    result: dict[str, float | None] = {
        "accuracy": float(((score > 0.5) == adversarial).mean()),
        "majority": max(share, 1 - share),
        "auroc": None,
        "tpr_at_fpr05": None,
    }
    if 0 < share < 1:
        false, true = roc(adversarial, score)
        result |= {"auroc": float(roc_auc_score(adversarial, score)), "tpr_at_fpr05": float(true[false <= 0.05].max())}
    return result


def roc(adversarial: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """False- and true-positive rate at every threshold; both classes must be there."""
    false, true, _ = roc_curve(adversarial, score, drop_intermediate=False)
    return false, true
