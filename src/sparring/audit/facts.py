"""The numbers of an audit, from rows of predictions: no model is run. audit.json holds them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from sparring import statistics
from sparring.audit import plan
from sparring.audit.plan import CHECKS, CURVE, LEAST, WORST, PlannedAttack
from sparring.audit.run import Work
from sparring.params.attacks import STEPS
from sparring.params.names import CLEAN
from sparring.report import checks as rules

POINTS = 60  # of the curve over L2 lengths


@dataclass(frozen=True)
class Facts:
    """The numbers of an audit.

    images: one row per image: index, label, correct (clean), standing (right when clean, and no attack broke it within
    the ball), confidence (clean), attack (the title of the first that broke it), attacked_confidence, attacked_correct,
    least (the least change in the audit's norm that broke it; 0 where it is wrong when clean, inf where none did),
    least_l2 (the same in L2), met (whether an attack of the worst case or of the checks met it), on_curve (whether the
    curve has it), measured (whether its least change was looked for).
    attacks: one row per attack of the worst case, in its order.  curve: eps, accuracy, ci_low, ci_high, images.
    lengths: the same by L2 length, which is `eps`.  checks: as `report.checks.verdicts`, without structures.
    corruptions: corruption, strength, accuracy, ci_low, ci_high, images.  classes: their names.
    waiting: the titles of the worst case's attacks that had no time, or not for all images.  autoattack: whether all of
    AutoAttack ran.  left_out: what was not done, or not whole → why.  has_gradients: whether the model has any.
    """

    images: pd.DataFrame
    attacks: pd.DataFrame
    curve: pd.DataFrame
    lengths: pd.DataFrame
    checks: pd.DataFrame
    corruptions: pd.DataFrame
    classes: Sequence[str]
    norm: str
    eps: float
    waiting: Sequence[str]
    autoattack: bool
    left_out: dict[str, str]
    has_gradients: bool

    @property
    def clean(self) -> dict[str, Any]:
        """Return the accuracy on clean images, as `share`."""
        return share(self.images["correct"])

    @property
    def worst(self) -> dict[str, Any]:
        """Return the accuracy under the worst of all attacks within the ball, as `share`."""
        return share(self.images["standing"])

    @property
    def unattacked(self) -> int:
        """Return the number of images that are right when clean and that no attack has met within the time."""
        return int((self.images["standing"] & ~self.images["met"]).sum())

    @property
    def at_most(self) -> str:
        """Return the words that stand before the accuracy `worst`: none where every image met an attack."""
        return "at most " if self.unattacked else ""

    @property
    def median_least(self) -> float:
        """Return the median of `least` over the images that are on the curve and right when clean; NaN without any."""
        return self._median("least", "on_curve")

    @property
    def median_length(self) -> float:
        """Return the median of `least_l2` over the `measured` images that are right when clean; NaN without any."""
        return self._median("least_l2", "measured")

    def _median(self, column: str, membership: str) -> float:
        least = self.images.loc[self.images[membership] & self.images["correct"], column].to_numpy(float)
        return float(np.median(least)) if len(least) else float("nan")

    @property
    def by_class(self) -> pd.DataFrame:
        """Return a row for each class that has images, the least robust first.

        Columns: class, clean (accuracy), standing (robust accuracy) with its interval ci_low, ci_high, and images.
        """
        rows = []
        for number, rows_of_class in self.images.groupby("label"):
            standing = share(rows_of_class["standing"])
            rows.append({"class": self.classes[int(str(number))], "clean": rows_of_class["correct"].mean(), **standing})
        table = pd.DataFrame(rows).rename(columns={"accuracy": "standing"})
        return table.sort_values(["standing", "clean"], kind="stable", ignore_index=True)

    @property
    def calibration(self) -> dict[str, float]:
        """Return the expected calibration error and the mean confidence, on clean and on attacked images.

        An attacked image is the work of the first attack that broke it or, where none did, of the last one on it.
        """
        images = self.images
        return {
            "clean": statistics.calibration_error(images["confidence"].to_numpy(), images["correct"].to_numpy(bool)),
            "attacked": statistics.calibration_error(
                images["attacked_confidence"].to_numpy(), images["attacked_correct"].to_numpy(bool)
            ),
            "confidence": float(images["confidence"].mean()),
            "attacked_confidence": float(images["attacked_confidence"].mean()),
        }


def share(right: pd.Series) -> dict[str, Any]:
    """Return an accuracy with its 95 % interval and the number of images.  right: bool, one per image."""
    low, high = statistics.wilson(int(right.sum()), len(right))
    return {"accuracy": float(right.mean()), "ci_low": low, "ci_high": high, "images": len(right)}


def gather(work: Work, classes: Sequence[str], waiting: Sequence[PlannedAttack], corruptions: pd.DataFrame) -> Facts:
    """Compute the facts of a finished audit.

    waiting: attacks of the worst case that had no time, or not for all images.
    corruptions: from `run.predict_corrupted`.
    """
    empty = pd.DataFrame(columns=["index", "attack", "title", "part", "correct", "inside", "l2", "linf", "confidence"])
    rows = pd.concat(work.frames, ignore_index=True) if work.frames else empty
    images = _images(work, rows)
    has_gradients = work.subject.has_gradients
    planned = plan.worst_case_attacks(work.norm, work.eps, len(classes), has_gradients)
    missing = {attack.key for attack in waiting} | set(plan.AUTOATTACK) - {attack.key for attack in planned}
    return Facts(
        images=images,
        attacks=pd.DataFrame(work.attack_rows, columns=["key", "attack", "met", "of", "fooled", "accuracy", "seconds"]),
        curve=_curve(work, images, rows),
        lengths=_lengths(images),
        checks=_checks(work, rows),
        corruptions=_corruptions(corruptions),
        classes=classes,
        norm=work.norm,
        eps=work.eps,
        waiting=[attack.title for attack in waiting],
        autoattack=not missing & set(plan.AUTOATTACK),
        left_out=dict(work.left_out),
        has_gradients=has_gradients,
    )


def _images(work: Work, rows: pd.DataFrame) -> pd.DataFrame:
    images = work.clean[["index", "label", "confidence"]].assign(correct=work.right, standing=work.standing)
    by_index = images.set_index("index")
    broken = rows[~rows["correct"].astype(bool)]
    for column, change in (("least", work.norm), ("least_l2", "l2")):
        least = broken.groupby("index")[change].min().reindex(by_index.index)
        by_index[column] = least.where(by_index["correct"], 0.0).astype(float).fillna(np.inf)
    fooled = broken[broken["inside"].astype(bool)].drop_duplicates("index").set_index("index")
    by_index["attack"] = fooled["title"].reindex(by_index.index)
    # An image that stands is shown as the last attack on it left it.
    last = rows[rows["part"] == WORST].drop_duplicates("index", keep="last").set_index("index")
    for name, default in (("confidence", by_index["confidence"]), ("correct", by_index["correct"])):
        attacked_values = fooled[name].reindex(by_index.index).astype(object)
        attacked_values = attacked_values.where(attacked_values.notna(), last[name].reindex(by_index.index))
        by_index[f"attacked_{name}"] = attacked_values.where(attacked_values.notna(), default)
    by_index["attacked_confidence"] = by_index["attacked_confidence"].astype(float)
    by_index["attacked_correct"] = by_index["attacked_correct"].astype(bool)
    by_index["met"] = by_index.index.isin(rows.loc[rows["part"].isin([WORST, CHECKS]), "index"])
    for name, part in (("on_curve", CURVE), ("measured", LEAST)):
        attacked_index = rows.loc[rows["part"] == part, "index"]
        positions = np.flatnonzero(by_index.index.isin(attacked_index))
        by_index[name] = np.arange(len(by_index)) <= (positions.max() if len(positions) else -1)
    return by_index.reset_index()


def _curve(work: Work, images: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """Return accuracy by radius, from 0. An image is right at the radii below the least change that broke it."""
    columns = ["eps", "accuracy", "ci_low", "ci_high", "images"]
    on_curve = images[images["on_curve"]]
    met = set(rows.loc[rows["part"] == CURVE, "attack"])
    attacks = plan.curve_attacks(work.norm, work.eps, work.images.image.shape[1], True)
    radii = [0.0, *(plan.radius_of(attack, work.norm) for attack in attacks if attack.key in met)]
    if on_curve.empty:
        return pd.DataFrame(columns=columns)
    slack = 1e-3 / 255 if work.norm == "linf" else 1e-4
    shares = [share(on_curve["least"] > radius + slack * (radius > 0)) for radius in radii]
    return pd.DataFrame([{"eps": radius, **row} for radius, row in zip(radii, shares, strict=True)], columns=columns)


def _lengths(images: pd.DataFrame) -> pd.DataFrame:
    measured = images[images["measured"]]
    finite = measured.loc[np.isfinite(measured["least_l2"]), "least_l2"]
    columns = ["eps", "accuracy", "ci_low", "ci_high", "images"]
    if measured.empty or not len(finite):
        return pd.DataFrame(columns=columns)
    lengths = np.linspace(0, float(finite.max()), POINTS)
    return pd.DataFrame(
        [{"eps": length, **share(measured["least_l2"] > length)} for length in lengths], columns=columns
    )


def _checks(work: Work, rows: pd.DataFrame) -> pd.DataFrame:
    """Return the sanity checks (Carlini et al., 2019, arXiv 1902.06705) whose attacks had time, one per row.

    Columns: check, compared, images, accuracy, against, passed.
    """
    check_rows = rows[(rows["part"] == CHECKS) | (rows["attack"] == plan.TRANSFER)].assign(seed=0)
    # An image that an attack broke only outside of the ball counts as correct.
    check_rows["correct"] = check_rows["correct"].astype(bool) | ~check_rows["inside"].astype(bool)
    by_attack = dict(list(check_rows.groupby("attack")))
    square = f"Square of {plan.FEW_QUERIES} queries"
    compared = [
        ("iterative beats single step", "PGD of 20 steps, one step", plan.SINGLE, 0.0),
        ("more steps do not help much", f"PGD of 20 steps, of {STEPS}", plan.LONGER, rules.MUCH),
        ("black box does not beat white box", f"PGD of 20 steps, {square}", plan.BLACK_BOX, 0.0),
        ("white box beats transfer", "PGD of 20 steps, PGD on the other net", plan.TRANSFER, 0.0),
    ]
    decided = [
        {"check": check, "compared": words, **rules.paired(by_attack[plan.REFERENCE], by_attack[other], tolerance)}
        for check, words, other, tolerance in compared
        if plan.REFERENCE in by_attack and other in by_attack
    ]
    decided += _unbounded(work, rows[rows["part"] == CURVE])
    return pd.DataFrame(decided, columns=["check", "compared", "images", "accuracy", "against", "passed"])


def _unbounded(work: Work, curve: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the check that every image is broken at the largest radius, as a row in a list.

    The list is empty where the time left an unbroken image unattacked at that radius.
    curve: rows of the curve's attacks, the radii rising.
    """
    if curve.empty:
        return []
    last = plan.curve_attacks(work.norm, work.eps, work.images.image.shape[1], True)[-1]
    standing = curve.groupby("index")["correct"].all()
    is_met = standing.index.isin(curve.loc[curve["attack"] == last.key, "index"])
    if (standing & ~is_met).any():
        return []
    facts = {"images": len(standing), "accuracy": float(standing.mean()), "passed": bool(not standing.any())}
    return [{"check": rules.UNBOUNDED, "compared": f"{curve['title'].iloc[-1]} and below", **facts}]


def _corruptions(rows: pd.DataFrame) -> pd.DataFrame:
    columns = ["corruption", "strength", "accuracy", "ci_low", "ci_high", "images"]
    if rows.empty:
        return pd.DataFrame(columns=columns)
    return statistics.accuracies(rows, ["corruption", "strength"]).reset_index()[columns]


def mean_under_corruptions(table: pd.DataFrame) -> float:
    """Return the mean accuracy over all corruptions and strengths; NaN where there are none."""
    return float(table.loc[table["corruption"] != CLEAN, "accuracy"].mean()) if len(table) else float("nan")
