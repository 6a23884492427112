"""The sanity checks of white-box attacks, of which the last looks at the end of the curve over radii."""

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
    """The reference PGD by radius: columns structure, eps (in 1/255; 0 is clean), accuracy, ci_low, ci_high, images,
    success (of the images that are right when clean, the share that is fooled)."""
    points = {CLEAN: 0} | dict(zip(params.whitebox.on_curve, params.whitebox.curve.eps, strict=True))
    on_curve = rows[rows["attack"].isin(list(points))]
    met = on_curve.loc[on_curve["attack"] != CLEAN, ["structure", "seed", "index"]].drop_duplicates()
    on_curve = on_curve.merge(met, on=["structure", "seed", "index"])
    if on_curve.empty:
        return pd.DataFrame(columns=["structure", "eps", "accuracy", "ci_low", "ci_high", "images", "success"])
    table = statistics.accuracies(
        on_curve.assign(eps=on_curve["attack"].map(points)), ["structure", "eps"]
    ).reset_index()
    clean = table[table["eps"] == 0].set_index("structure")["accuracy"].replace(0, np.nan)
    return table.assign(success=1 - table["accuracy"] / table["structure"].map(clean))


def withstood(rows: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """A row of each group, `correct` where all of its rows are."""
    return rows.groupby(keys, sort=False)["correct"].all().reset_index()


def verdicts(params: Params, rows: pd.DataFrame, transfer: pd.DataFrame) -> pd.DataFrame:
    """Signs of attacks that are too weak, or of gradients that are masked (Carlini et al., 2019, arXiv 1902.06705).

    transfer: predictions of the stored attacks (statistics) on test images, with `structure` and `correct`.
    Columns check, compared (what with what, and at which radius), structure, images, accuracy (what should be lower),
    against (the other), low, high (of accuracy minus against, 95 %), passed (True, False, or None: not to be decided).
    """
    decided = []
    for structure in params.structures:
        own, stored = rows[rows["structure"] == structure], transfer[transfer["structure"] == structure]
        for check, compared, lower, other, tolerance in _comparisons(params, own, stored):
            decided.append(
                {"check": check, "compared": compared, "structure": structure, **paired(lower, other, tolerance)}
            )
        line = curve(params, own)
        if len(line):
            end = line.iloc[-1]
            fact = {"images": end["images"], "accuracy": end["accuracy"], "passed": bool(end["accuracy"] == 0)}
            compared = f"{params.whitebox.reference} at Linf {end['eps']}/255"
            decided.append({"check": UNBOUNDED, "compared": compared, "structure": structure, **fact})
    columns = ["check", "compared", "structure", "images", "accuracy", "against", "low", "high", "passed"]
    return pd.DataFrame(decided, columns=columns)


def _comparisons(
    params: Params, own: pd.DataFrame, stored: pd.DataFrame
) -> Iterator[tuple[str, str, pd.DataFrame, pd.DataFrame, float]]:
    """Of a structure: (check, what is compared, rows that should be correct less often, the others, tolerance)."""
    settings = params.whitebox
    by_radius: dict[str, dict[str, str]] = {}
    for name, attack in settings.attacks.items():
        if attack.linf is not None and attack.method in ("fgsm", "pgd"):
            by_radius.setdefault(radius(attack), {}).setdefault(attack.method, name)
    under = dict(list(own.groupby("attack")))
    none = own.iloc[:0]
    gallery = params.attacks | params.unseen_attacks
    for ball, names in by_radius.items():
        same = [name for name, attack in gallery.items() if radius(attack) == ball]
        if "pgd" in names and same:
            # As in the white-box rows, an image that is wrong when clean counts as wrong.
            shown = stored[stored["attack"].isin([CLEAN, *same])]
            worst = withstood(shown, ["seed", "index"]) if (own["structure"] != BASELINE).any() else none
            yield (
                "white-box beats transfer",
                f"{names['pgd']}, stored {' and '.join(same)}, {ball}",
                under.get(names["pgd"], none),
                worst,
                0,
            )
    for ball, names in by_radius.items():
        if len(names) == 2:
            lower, other = (under.get(names[method], none) for method in ("pgd", "fgsm"))
            yield "iterative beats single step", f"{names['pgd']}, {names['fgsm']}, {ball}", lower, other, 0
    reference = under.get(settings.reference, none)
    steps, ball = settings.attacks[settings.reference].arguments["steps"], radius(settings.attacks[settings.reference])
    compared = f"{settings.reference} with {steps} and {settings.checks.steps} steps, {ball}"
    yield "more steps do not help much", compared, reference, under.get(MORE_STEPS, none), MUCH
    compared = f"{settings.reference}, Square with {settings.checks.queries} queries, {ball}"
    yield "black box does not beat white box", compared, reference, under.get(SQUARE, none), 0
    if any(params.predicts_at_random(structure) for structure in params.structures):
        compared = f"{settings.reference} through the transform and through one draw of it, {ball}"
        yield "the whole transform beats one draw", compared, reference, under.get(SINGLE_DRAW, none), 0


def paired(lower: pd.DataFrame, other: pd.DataFrame, tolerance: float) -> dict[str, Any]:
    """Both accuracies on the images that both have, and whether the first is higher by more than chance allows."""
    keys = ["seed", "index"]
    both = lower[[*keys, "correct"]].merge(other[[*keys, "correct"]], on=keys, suffixes=("", "_other"))
    if both.empty:
        return {"images": 0, "passed": None}
    frames = [both.assign(structure="lower"), both.assign(structure="other", correct=both["correct_other"])]
    compared = statistics.comparisons(pd.concat(frames).assign(split="test"), ("lower", "other"), ["split"])
    low, high = compared[["image_low", "image_high"]].to_numpy(float)[0]  # the first is `lower` against `other`
    facts = {
        "images": both["index"].nunique(),
        "accuracy": both["correct"].mean(),
        "against": both["correct_other"].mean(),
    }
    return facts | {"low": low, "high": high, "passed": bool(low <= tolerance)}


def table(params: Params, verdicts: pd.DataFrame) -> Table:
    """A row a check, a column a structure.  verdicts: from `verdicts`."""
    wide = []
    for kind in records(verdicts[["check", "compared"]].drop_duplicates()):
        here = verdicts[(verdicts["check"] == kind.check) & (verdicts["compared"] == kind.compared)]
        here = here.set_index("structure")
        row = {"check": kind.check, "compared": kind.compared, "images": f"{here['images'].max():.0f}"}
        for structure in params.structures:
            cell = here.loc[structure]
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
    """A line for each structure that an attacker without a bound does not bring to zero.  verdicts: from `verdicts`."""
    ends = verdicts[(verdicts["check"] == UNBOUNDED) & ~verdicts["passed"].astype(bool)]
    return [
        f"**Warning: gradients may be masked.** {escape.markdown(row.structure)} still classifies a share of "
        f"{row.accuracy:.3f} of {row.images:.0f} images correctly under {escape.markdown(row.compared)}, where any "
        "image can be made grey: its white-box figures cannot be taken for its robustness."
        for row in records(ends)
    ]
