"""Make the white-box section: accuracy under attacks aimed at each structure, worst cases, the curve over radii."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sparring import statistics
from sparring.params import Params
from sparring.params.names import AUTOATTACK, BASELINE, CLEAN
from sparring.report import checks, escape, read
from sparring.report.differences import (
    chance_note,
    differences_note,
    mcnemar,
    signed_row,
    starred,
    trainings_of,
)
from sparring.report.figure import LONGEST, canvas, error_bars, line_look
from sparring.report.lettering import short
from sparring.report.page import Figure, Section
from sparring.report.results import Results
from sparring.report.table import ACCURACY, INTERVALS, Table, number, radius, records, with_interval

TITLE = "White-box: attacks aimed at each structure itself"
WORST, ANY = "worst case", "any of these"


@dataclass(frozen=True)
class Numbers:
    """Hold the section's numbers, counted before anything is drawn.

    rows: from `read.whitebox`.  compared: from `comparisons`.
    """

    rows: pd.DataFrame
    accuracy: Table
    checks: Table
    compared: pd.DataFrame

    @property
    def worst(self) -> pd.DataFrame:
        """Return the worst case within any radius by structure, with `trainings` and `side` against the baseline."""
        sides, rows = self.compared["side"], worst(self.accuracy.tidy)
        case = ("test", f"{WORST}, {ANY}")
        side = [sides.get((*case, name, BASELINE), 0) for name in rows.index]
        return rows.assign(side=side, trainings=trainings_of(self.compared))

    @property
    def compared_in_worst(self) -> dict[Any, dict[Any, Any]]:
        """Return the comparisons of structures in that worst case, by structure and other."""
        rows: dict[Any, dict[Any, Any]] = self.compared.to_dict("index")
        case = ("test", f"{WORST}, {ANY}")
        return {key[2:]: row for key, row in rows.items() if key[:2] == case}


def numbers(results: Results) -> Numbers:
    """Read the predictions under white-box attacks, and count what the section shows."""
    params = results.params
    rows = read.whitebox(params, results.layout, results.clean["test"])
    cases = worst_cases(params, rows)
    transfer = results.predictions[results.predictions["split"] == "test"]
    return Numbers(
        rows,
        table(params, accuracies(params, rows, cases)),
        checks.table(params, checks.verdicts(params, rows, transfer)),
        comparisons(params, cases),
    )


def section(results: Results, numbers: Numbers, timings: Sequence[dict[str, Any]], folder: Path) -> Section:
    """Make the section, warnings first, and write the figure and, as .csv, its numbers.

    numbers: from `numbers`.  timings: of stages, from `read.timings`.
    """
    params = results.params
    if "whitebox" in results.left_out:
        return Section(TITLE, [results.why_left_out("whitebox")])
    if numbers.accuracy.tidy.empty:
        return Section(TITLE, ["No white-box attack was run (`whitebox.images`), or there are no test images."])
    parts: list[str | Table | Figure] = [*checks.warnings(numbers.checks.tidy), price(params, numbers, timings)]
    parts.append(numbers.accuracy)
    parts += mcnemar(params, "whitebox_mcnemar", numbers.compared, ["test"])
    points = checks.curve(params, numbers.rows)
    if len(points):
        points.to_csv(folder / "figures" / "whitebox_curve.csv", index=False, float_format="%.6g", lineterminator="\n")
        draw_whitebox_curve(folder, points)
        steps = params.whitebox.attacks[params.whitebox.reference].arguments["steps"]
        caption = f"Accuracy under white-box PGD of {steps} steps by its radius, with 95 % intervals. "
        parts.append(Figure("whitebox_curve", caption + "It must end at zero."))
    return Section(TITLE, [*parts, numbers.checks])


def price(params: Params, numbers: Numbers, timings: Sequence[dict[str, Any]]) -> Table:
    """Return the table of what each structure withstands, and what that costs in clean accuracy and time to train."""
    seconds = read.seconds_to_train(params, timings)
    worst, compared = numbers.worst, numbers.compared_in_worst
    best = str(worst["accuracy"].idxmax())
    clean = numbers.accuracy.tidy
    clean = clean[clean["attack"] == CLEAN].set_index("structure")
    tidy, wide = [], []
    for name, structure in params.structures.items():
        row = compared.get((name, best))
        opponents = structure.opponents + ", evolving" * (structure.evolving != "none")
        facts = {"structure": name, "opponents": opponents, "seconds": seconds.get(name, math.nan)}
        both = {"worst_case": worst.loc[name], "clean": clean.loc[name]}
        tidy.append(facts | {f"{case}_{key}": cell[key] for case, cell in both.items() for key in ACCURACY})
        wide.append(
            {
                "structure": name,
                "opponents": opponents,
                "white-box, worst case": with_interval(*worst.loc[name, list(ACCURACY)]),
                f"minus {best}": starred(signed_row(row), row["side"]) if row else "-",
                "clean, the same images": with_interval(*clean.loc[name, list(ACCURACY)]),
                "training, s": number(seconds.get(name), 0),
            }
        )
    count = trainings_of(numbers.compared)
    notes = [f"{differences_note(count)} `*`: {chance_note(count)} Time is that of one training."]
    caption = "What each structure withstands of attackers who aim at it, and what that costs."
    return Table("price", caption, pd.DataFrame(tidy), {"": pd.DataFrame(wide)}, notes)


def worst_cases(params: Params, rows: pd.DataFrame) -> pd.DataFrame:
    """Return a row per (radius, structure, seed, index) whose `correct` says whether the image withstood every attack.

    The radii are those of `whitebox.attacks` and AutoAttack; ANY stands for the union of their balls. An attacked image
    counts for each radius that it lies within, whichever attack made it; a clean image counts for all. If no attack has
    a radius, every image counts for ANY.
    """
    attacks = [params.whitebox.runs[name][0] for name in _attacks_in_table(params)]
    balls = {radius(attack): attack for attack in attacks if radius(attack)}
    inside = {}
    for name, attack in balls.items():
        if attack.linf is not None:
            inside[name] = 255 * rows["linf"] <= 255 * attack.linf + 1e-3
        elif attack.l2 is not None:
            inside[name] = rows["l2"] <= attack.l2 * (1 + 1e-4)
    inside[ANY] = np.logical_or.reduce(list(inside.values())) if inside else rows["linf"].notna()
    keys = ["structure", "seed", "index"]
    return pd.concat([checks.withstood(rows[within], keys).assign(radius=name) for name, within in inside.items()])


def _attacks_in_table(params: Params) -> list[str]:
    return [name for name in params.whitebox.runs if name in (*params.whitebox.attacks, AUTOATTACK)]


def accuracies(params: Params, rows: pd.DataFrame, cases: pd.DataFrame) -> pd.DataFrame:
    """Return accuracies in the order of the table: clean, under each attack, then in the worst cases.

    Columns: attack, radius, structure, accuracy, ci_low, ci_high, images, sd, l2_median (of the changes that fool).
    cases: from `worst_cases`.
    """
    single = statistics.accuracies(rows, ["attack", "structure"])
    lengths = rows[~rows["correct"] & (rows["linf"] > 0)].groupby(["attack", "structure"])["l2"].median()
    single = single.assign(l2_median=lengths.reindex(single.index).astype(float)).reset_index()
    radii = {name: radius(params.whitebox.runs[name][0]) for name in _attacks_in_table(params)}
    single = single[single["attack"].isin([CLEAN, *radii])].assign(radius=single["attack"].map(radii).fillna(""))
    worst = statistics.accuracies(cases, ["radius", "structure"]).reset_index().assign(attack=WORST)
    columns = ["attack", "radius", "structure", "accuracy", "ci_low", "ci_high", "images", "sd", "l2_median"]
    return pd.concat([single, worst], ignore_index=True).reindex(columns=columns)


def comparisons(params: Params, cases: pd.DataFrame) -> pd.DataFrame:
    """Compare the structures with each other in each worst case: statistics.comparisons by split and attack.

    cases: from `worst_cases`.
    """
    rows = cases.assign(split="test", attack=WORST + ", " + cases["radius"])
    return statistics.comparisons(rows, list(params.structures), ["split", "attack"])


def table(params: Params, accuracy: pd.DataFrame) -> Table:
    """Return the table of attacks × structures, the worst cases last.  accuracy: from `accuracies`."""
    structures = list(params.structures)
    kinds = accuracy[["attack", "radius"]].drop_duplicates()
    wide = []
    for kind in records(kinds):
        cells = accuracy[(accuracy["attack"] == kind.attack) & (accuracy["radius"] == kind.radius)].set_index(
            "structure"
        )
        row = {"attack": kind.attack, "within": kind.radius or ("-" if kind.attack == CLEAN else "no radius")}
        row |= {"images": f"{cells['images'].max()}"}
        for structure in structures:
            cell = cells.loc[structure]
            row[structure] = with_interval(*cell[list(ACCURACY)])
        wide.append(row)
    return Table(
        "whitebox",
        "Accuracy under attacks aimed at each structure itself (white-box), on test images.",
        accuracy,
        {"": pd.DataFrame(wide, columns=["attack", "within", "images", *structures])},
        [
            "Every structure is attacked by its own gradients; an image that it misclassifies when clean counts as "
            "misclassified. `worst case`: the share of images that withstood every attack. A changed image counts for "
            "each radius that it lies within, whichever attack made it, those of the sanity checks and of the curve "
            f"included; `{ANY}` counts what lies within at least one. None of these attackers looks at the detector. "
            + INTERVALS,
            *_unbounded_note(accuracy),
        ],
    )


def _unbounded_note(accuracy: pd.DataFrame) -> list[str]:
    unbounded = accuracy[(accuracy["radius"] == "") & accuracy["l2_median"].notna()]
    if unbounded.empty:
        return []
    lengths = [
        f"{escape.markdown(row.attack)} on {escape.markdown(row.structure)} {row.l2_median:.2f}"
        for row in records(unbounded)
    ]
    return [
        "An attack without a radius goes as far as it must, so its accuracy alone says nothing: the median L2 length "
        f"of its successes is {', '.join(lengths)}. In a worst case it counts where it stays within the radius."
    ]


def summary(accuracy: pd.DataFrame, verdicts: pd.DataFrame) -> dict[str, dict[str, object]]:
    """Return, by structure, accuracy under each attack, in the worst case within any radius, and the failed checks.

    accuracy: from `accuracies`.  verdicts: from `checks.verdicts`.
    """
    trees: dict[str, dict[str, object]] = {}
    worst_accuracy = worst(accuracy)["accuracy"]
    for structure, rows in accuracy.groupby("structure", sort=False):
        single = rows[rows["attack"] != WORST]
        failed = verdicts[(verdicts["structure"] == structure) & verdicts["passed"].eq(False)]
        trees[str(structure)] = {
            "attacks": dict(zip(single["attack"], single["accuracy"], strict=True)),
            "worst_case": float(worst_accuracy[structure]),
            "failed_checks": ", ".join(dict.fromkeys(failed["check"])),
        }
    return trees


def worst(accuracy: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the worst case within any radius, by structure.  accuracy: from `accuracies`."""
    return accuracy[accuracy["radius"] == ANY].set_index("structure")


def draw_whitebox_curve(folder: Path, table: pd.DataFrame) -> None:
    """Draw accuracy by the attack's radius, one line per structure. Radii are spaced evenly, as they double.

    table: columns structure, eps (in 1/255), accuracy, ci_low, ci_high.
    """
    levels = sorted(table["eps"].unique())
    with canvas(folder, "whitebox_curve", 6.5, 3.6) as figure:
        axes = figure.subplots()
        for number, (name, rows) in enumerate(table.groupby("structure", sort=False)):
            rows = rows.set_index("eps").loc[levels]
            axes.errorbar(
                np.arange(len(levels)) + 0.06 * number,
                rows["accuracy"],
                error_bars(rows),
                label=short(str(name), LONGEST),
                marker="o",
                markersize=3,
                capsize=2,
                **line_look(number),
            )
        axes.set_xticks(np.arange(len(levels)), [str(level) for level in levels])
        axes.set(xlabel="radius in L∞, in 1/255", ylabel="accuracy", ylim=(-0.02, 1.02))
        figure.legend(loc="outside lower center", ncols=min(table["structure"].nunique(), 6))
