"""Measures how well detectors tell attacked images from clean ones."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.stats import norm, rankdata
from sklearn.metrics import roc_auc_score, roc_curve

from sparring.params.names import CLEAN
from sparring.statistics.accuracy import LEVEL, accuracies, accuracy_columns, interval_columns, with_index

# Scores of detectors. A frame of them has one row per (method, split, seed, kind, attack, index), with `label`,
# `prediction` (kind aimed only) and `score`; docs/data.md tells what the kinds are.

RATES = {"05": 0.05, "01": 0.01}
ALL = "all but noise"  # no attack's name: it has spaces


def accuse(scores: pd.DataFrame) -> pd.DataFrame:
    """Add the columns accused_05 and accused_01 to scores: whether the score is above the threshold that at most 5 %
    (1 %) of the clean validation images exceed; without validation images, of the clean images of the same split.

    Each method and seed has its own thresholds.
    """
    clean = scores[scores["kind"] == CLEAN]
    by = ["method", "seed"]
    parts = []
    for split, rows in scores.groupby("split", sort=False):
        validation = clean[clean["split"] == "validation"]
        reference = validation if len(validation) else clean[clean["split"] == split]
        marked = rows
        for name, rate in RATES.items():
            thresholds = reference.groupby(by)["score"].agg(np.quantile, q=1 - rate, method="inverted_cdf")
            own = marked[by].join(thresholds, on=by)["score"]
            marked = marked.assign(**{f"accused_{name}": marked["score"] > own})
        parts.append(marked)
    return pd.concat(parts) if parts else scores.assign(**{f"accused_{name}": False for name in RATES})


def matched(
    accused: pd.DataFrame, stored: pd.DataFrame, source_clean: pd.DataFrame, noise: Sequence[str]
) -> pd.DataFrame:
    """Pair each attacked image with its clean image, but for images that the attack left unchanged.

    accused: from `accuse`.  stored: the stored attacks.  source_clean: the source model's predictions of the clean
    images.  noise: attacks that are mere noise.
    Columns: split, attack, method, seed, index, score, accused_05, accused_01, these three of the clean image with
    `_clean` after them, and `outcome` (succeeded: the source model went from right to wrong; failed: it stayed right;
    wrong before). The pairs of all attacks but noise come once more, as those of the attack ALL.
    """
    keys = ["split", "method", "seed", "index"]
    values = ["score", *(f"accused_{name}" for name in RATES)]
    attacked, clean = (accused.loc[accused["kind"] == kind] for kind in ("attack", CLEAN))
    pairs = attacked[[*keys, "attack", *values]].merge(
        clean[[*keys, *values]], on=keys, suffixes=("", "_clean"), validate="many_to_one"
    )
    facts = stored[["split", "attack", "index", "label", "prediction", "linf"]].merge(
        source_clean[["split", "index", "correct"]].drop_duplicates(["split", "index"]), on=["split", "index"]
    )
    fooled = np.where(facts["prediction"] != facts["label"], "succeeded", "failed")
    facts = facts.assign(outcome=np.where(facts["correct"], fooled, "wrong before"))
    facts = facts.loc[facts["linf"] > 0, ["split", "attack", "index", "outcome"]]
    pairs = pairs.merge(facts, on=["split", "attack", "index"], validate="many_to_one")
    return pd.concat([pairs, pairs[~pairs["attack"].isin(noise)].assign(attack=ALL)], ignore_index=True)


def auroc(pairs: pd.DataFrame) -> tuple[float, float, float, float]:
    """Return (area, low, high, sd) of matched pairs: the area under the ROC, averaged over seeds, its 95 % interval and
    its standard deviation over seeds.

    pairs: from `matched`, of one attack (or ALL) and method. The interval is that of DeLong et al. (1988) for clustered
    pairs (Obuchowski, 1997): all pairs of one image are a cluster. It is normal and clipped to [0, 1]; where every
    attacked image scores above every clean one it has no width.
    """
    areas, parts = [], []
    for _, rows in pairs.groupby("seed"):
        clean, attacked = rows["score_clean"].to_numpy(float), rows["score"].to_numpy(float)
        area = float(roc_auc_score(np.repeat([0, 1], len(rows)), np.concatenate([clean, attacked])))
        above = (rankdata(np.append(attacked, clean)) - np.append(rankdata(attacked), rankdata(clean))) / len(rows)
        areas.append(area)
        # Each pair's influence on the area: by its attacked image's rank among the clean ones, and the reverse.
        influence = above[: len(rows)] - above[len(rows) :] + 1 - 2 * area
        parts.append(pd.Series(influence / len(rows), rows["index"].to_numpy()))
    if not areas:
        return float("nan"), float("nan"), float("nan"), float("nan")
    by_image = (pd.concat(parts) / len(parts)).groupby(level=0).sum().to_numpy()
    count, area, sd = len(by_image), float(np.mean(areas)), float(pd.Series(areas).std())
    if count < 2:
        return area, 0.0, 1.0, sd
    half = norm.ppf((1 + LEVEL) / 2) * float(np.sqrt((by_image**2).sum() * count / (count - 1)))
    return area, max(area - half, 0.0), min(area + half, 1.0), sd


def separation(pairs: pd.DataFrame) -> pd.DataFrame:
    """Measure how well each method tells attacked from clean images; index: split, attack, method.

    pairs: from `matched`.  Columns: auroc, tpr_05 and tpr_01 (the share of the attacked images that is accused), each
    with _low, _high and _sd; images, their number.
    """
    by = ["split", "attack", "method"]
    areas = {key: auroc(rows) for key, rows in pairs.groupby(by, sort=False)}
    table = with_index(pd.DataFrame.from_dict(areas, "index", columns=interval_columns("auroc"), dtype=float), by)
    for name in RATES:
        rates = accuracies(pairs.assign(correct=pairs[f"accused_{name}"]), by)
        table = table.join(accuracy_columns(rates, f"tpr_{name}"))
    return table.join(rates["images"])


def pair_accuracy(pairs: pd.DataFrame) -> pd.DataFrame:
    """Return the accuracy on matched pairs, half of whose images are clean, at the threshold of 5 %.

    Index: split, attack, method, outcome.  Columns: as `accuracies`.
    """
    right = (pairs["accused_05"].astype(float) + ~pairs["accused_05_clean"].astype(bool)) / 2
    return accuracies(pairs.assign(correct=right), ["split", "attack", "method", "outcome"])


def false_positives(accused: pd.DataFrame) -> pd.DataFrame:
    """Return the share of clean and of benignly changed images that is accused; index: split, attack, method.

    Columns: fpr_05 and fpr_01, each with _low, _high and _sd, and images.
    """
    rows = accused[accused["kind"].isin([CLEAN, "benign"])]
    by = ["split", "attack", "method"]
    rates = {name: accuracies(rows.assign(correct=rows[f"accused_{name}"]), by) for name in RATES}
    table = pd.concat([accuracy_columns(part, f"fpr_{name}") for name, part in rates.items()], axis=1)
    return table.join(rates["05"]["images"])


def joint_robustness(accused: pd.DataFrame) -> pd.DataFrame:
    """Measure classifier and detector together on the rows of kind aimed; index: split, attack, method.

    Columns: right (the share that is classified right), accused (the share at the threshold of 5 %), and joint (the
    share that is either), with joint_low, joint_high and joint_sd; images.
    """
    rows = accused[(accused["kind"] == "aimed") & accused["score"].notna()]
    right = rows["prediction"] == rows["label"]
    by = ["split", "attack", "method"]
    joint = accuracies(rows.assign(correct=right | rows["accused_05"]), by)
    table = accuracy_columns(joint, "joint").join(joint["images"])
    table.insert(0, "right", accuracies(rows.assign(correct=right), by)["accuracy"])
    table.insert(1, "accused", accuracies(rows.assign(correct=rows["accused_05"]), by)["accuracy"])
    return table


def roc_of_pairs(pairs: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Return false- and true-positive rates of matched pairs of one attack and method, averaged over seeds."""
    grid = np.linspace(0, 1, 1001)
    curves = []
    for _, rows in pairs.groupby("seed"):
        score = np.concatenate([rows["score_clean"], rows["score"]])
        curves.append(roc(np.repeat([False, True], len(rows)), score))
    if len(curves) == 1:
        return curves[0]
    return grid, np.mean([np.interp(grid, *curve) for curve in curves], 0)


def detector_metrics(adversarial: np.ndarray, score: np.ndarray) -> dict[str, float | None]:
    """Measure how well a score tells adversarial from clean images.

    adversarial: (N,) bool.  score: (N,) probability of being adversarial.
    Returns accuracy (at 0.5), majority (the accuracy of always giving the commoner answer), auroc, and tpr_at_fpr05
    (the largest true-positive rate at a false-positive rate of at most 5 %); None where it is not defined.
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
    """Return the false- and true-positive rate at every threshold. Both classes must occur."""
    false, true, _ = roc_curve(adversarial, score, drop_intermediate=False)
    return false, true
