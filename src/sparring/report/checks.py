"""Check that white-box attacks were strong enough, by comparisons and by the end of the curve over radii."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from sparring import statistics
from sparring.params import Params
from sparring.params.names import BASELINE, CLEAN, MORE_STEPS, SINGLE_DRAW, SQUARE
from sparring.report import escape
from sparring.report.table import Table, number, radius, records

UNBOUNDED = "without a bound nothing is left"
MUCH = 0.02  # of accuracy, that more steps may take away
RULE = (
    "How they are decided: each compares two accuracies on the same images and *passes* unless the 95 % interval of "
    "their paired difference lies wholly on the wrong side of zero, or for more steps of "
    f"{MUCH:g}. It is an interval over images alone, as the question is about these very nets. Few images make wide "
    "intervals, so a pass on few images says little. The last check has no interval: one image that is still "
    "classified correctly fails it."
)


def curve(params: Params, rows: pd.DataFrame) -> pd.DataFrame:
    """Return accuracy under the reference PGD by radius.

    Columns: structure, eps (in 1/255; 0 is clean), accuracy, ci_low, ci_high, images, success (the share of images
    fooled, of those that are right when clean).
    """
    points = {CLEAN: 0} | dict(zip(params.whitebox.on_curve, params.whitebox.curve.eps, strict=True))
    on_curve = rows[rows["attack"].isin(list(points))]
    attacked = on_curve.loc[on_curve["attack"] != CLEAN, ["structure", "seed", "index"]].drop_duplicates()
    on_curve = on_curve.merge(attacked, on=["structure", "seed", "index"])
    if on_curve.empty:
        return pd.DataFrame(columns=["structure", "eps", "accuracy", "ci_low", "ci_high", "images", "success"])
    table = statistics.accuracies(
        on_curve.assign(eps=on_curve["attack"].map(points)), ["structure", "eps"]
    ).reset_index()
    clean = table[table["eps"] == 0].set_index("structure")["accuracy"].replace(0, np.nan)
    return table.assign(success=1 - table["accuracy"] / table["structure"].map(clean))


def withstood(rows: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """Return a row for each group, which is `correct` where all rows of the group are."""
    return rows.groupby(keys, sort=False)["correct"].all().reset_index()


def verdicts(params: Params, rows: pd.DataFrame, transfer: pd.DataFrame) -> pd.DataFrame:
    """Look for signs of weak attacks, or of masked gradients (Carlini et al., 2019, arXiv 1902.06705).

    transfer: predictions of the stored attacks (statistics) on test images, with `structure` and `correct`.
    Columns: check, compared (what with what, and at which radius), structure, images, accuracy (which should be the
    lower), against (the other), low and high (the 95 % interval of accuracy minus against), passed (None where there is
    nothing to compare).
    """
    checks = []
    for structure in params.structures:
        own, stored = rows[rows["structure"] == structure], transfer[transfer["structure"] == structure]
        for check, compared, lower, other, tolerance in _comparisons(params, own, stored):
            checks.append(
                {"check": check, "compared": compared, "structure": structure, **paired(lower, other, tolerance)}
            )
        line = curve(params, own)
        if len(line):
            end = line.iloc[-1]
            fact = {"images": end["images"], "accuracy": end["accuracy"], "passed": bool(end["accuracy"] == 0)}
            compared = f"{params.whitebox.reference} at Linf {end['eps']}/255"
            checks.append({"check": UNBOUNDED, "compared": compared, "structure": structure, **fact})
    columns = ["check", "compared", "structure", "images", "accuracy", "against", "low", "high", "passed"]
    return pd.DataFrame(checks, columns=columns)


def _comparisons(
    params: Params, own: pd.DataFrame, stored: pd.DataFrame
) -> Iterator[tuple[str, str, pd.DataFrame, pd.DataFrame, float]]:
    """Yield a structure's comparisons: (check, words, rows that should be right less often, other rows, tolerance)."""
    settings = params.whitebox
    by_radius: dict[str, dict[str, str]] = {}
    for name, attack in settings.attacks.items():
        if attack.linf is not None and attack.method in ("fgsm", "pgd"):
            by_radius.setdefault(radius(attack), {}).setdefault(attack.method, name)
    by_attack = dict(list(own.groupby("attack")))
    no_rows = own.iloc[:0]
    attacks = params.attacks | params.unseen_attacks
    for ball, names in by_radius.items():
        stored_names = [name for name, attack in attacks.items() if radius(attack) == ball]
        if "pgd" in names and stored_names:
            # As in the white-box rows, an image that is wrong when clean counts as wrong.
            transferred = stored[stored["attack"].isin([CLEAN, *stored_names])]
            worst = withstood(transferred, ["seed", "index"]) if (own["structure"] != BASELINE).any() else no_rows
            yield (
                "white-box beats transfer",
                f"{names['pgd']}, stored {' and '.join(stored_names)}, {ball}",
                by_attack.get(names["pgd"], no_rows),
                worst,
                0,
            )
    for ball, names in by_radius.items():
        if len(names) == 2:
            lower, other = (by_attack.get(names[method], no_rows) for method in ("pgd", "fgsm"))
            yield "iterative beats single step", f"{names['pgd']}, {names['fgsm']}, {ball}", lower, other, 0
    reference = by_attack.get(settings.reference, no_rows)
    steps, ball = settings.attacks[settings.reference].arguments["steps"], radius(settings.attacks[settings.reference])
    compared = f"{settings.reference} with {steps} and {settings.checks.steps} steps, {ball}"
    yield "more steps do not help much", compared, reference, by_attack.get(MORE_STEPS, no_rows), MUCH
    compared = f"{settings.reference}, Square with {settings.checks.queries} queries, {ball}"
    yield "black box does not beat white box", compared, reference, by_attack.get(SQUARE, no_rows), 0
    if any(params.predicts_at_random(structure) for structure in params.structures):
        compared = f"{settings.reference} through the transform and through one draw of it, {ball}"
        yield "the whole transform beats one draw", compared, reference, by_attack.get(SINGLE_DRAW, no_rows), 0


def paired(lower: pd.DataFrame, other: pd.DataFrame, tolerance: float) -> dict[str, Any]:
    """Compare two accuracies on common images: `passed` unless the first is higher beyond chance and tolerance."""
    keys = ["seed", "index"]
    pairs = lower[[*keys, "correct"]].merge(other[[*keys, "correct"]], on=keys, suffixes=("", "_other"))
    if pairs.empty:
        return {"images": 0, "passed": None}
    frames = [pairs.assign(structure="lower"), pairs.assign(structure="other", correct=pairs["correct_other"])]
    compared = statistics.comparisons(pd.concat(frames).assign(split="test"), ("lower", "other"), ["split"])
    low, high = compared[["image_low", "image_high"]].to_numpy(float)[0]  # the first is `lower` against `other`
    facts = {
        "images": pairs["index"].nunique(),
        "accuracy": pairs["correct"].mean(),
        "against": pairs["correct_other"].mean(),
    }
    return facts | {"low": low, "high": high, "passed": bool(low <= tolerance)}


def table(params: Params, verdicts: pd.DataFrame) -> Table:
    """Return the table of verdicts: one row per check, one column per structure.  verdicts: from `verdicts`."""
    wide = []
    for kind in records(verdicts[["check", "compared"]].drop_duplicates()):
        rows = verdicts[(verdicts["check"] == kind.check) & (verdicts["compared"] == kind.compared)]
        rows = rows.set_index("structure")
        row = {"check": kind.check, "compared": kind.compared, "images": f"{rows['images'].max():.0f}"}
        for structure in params.structures:
            cell = rows.loc[structure]
            words = {True: "pass", False: "FAIL"}.get(cell["passed"], "-")
            shares = [number(cell[key]) for key in ("accuracy", "against") if not pd.isna(cell[key])]
            row[structure] = f"{words}: {', '.join(shares)}" if shares else words
        wide.append(row)
    return Table(
        "checks",
        "Sanity checks of the white-box attacks: with each verdict, both accuracies in the order of “compared”.",
        verdicts,
        {"": pd.DataFrame(wide, columns=["check", "compared", "images", *params.structures])},
        [
            RULE,
            "A failed check means that the white-box figures flatter the structure: its gradients mislead the "
            "attacker, or the attacker did not try hard enough. The pretrained net's stored attacks were white-box "
            f"themselves, so `{BASELINE}` has no transfer to be compared with.",
        ],
    )


def warnings(verdicts: pd.DataFrame) -> list[str]:
    """Return a warning for each structure that even the curve's largest radius does not bring to an accuracy of zero.

    verdicts: from `verdicts`.
    """
    ends = verdicts[(verdicts["check"] == UNBOUNDED) & ~verdicts["passed"].astype(bool)]
    return [
        f"**Warning: gradients may be masked.** {escape.markdown(row.structure)} still classifies a share of "
        f"{row.accuracy:.3f} of {row.images:.0f} images correctly under {escape.markdown(row.compared)}, where any "
        "image can be made grey: its white-box figures cannot be taken for its robustness."
        for row in records(ends)
    ]
