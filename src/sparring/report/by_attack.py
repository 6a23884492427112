"""Make the section on accuracy on clean images and under each stored attack alone: Table 4."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sparring import statistics
from sparring.params.names import BASELINE, CLEAN, EVALUATED_SPLITS
from sparring.report import paper
from sparring.report.differences import mcnemar, seeds_note
from sparring.report.figure import LONGEST, attack_titles, bars, canvas, error_bars, title_lines
from sparring.report.lettering import short
from sparring.report.page import Figure, Section
from sparring.report.results import Results
from sparring.report.table import (
    ACCURACY,
    INTERVALS,
    SPLIT_TITLES,
    TRANSFER,
    Table,
    attack_title,
    full,
    intervals,
    number,
)


def section(results: Results, table: Table, folder: Path) -> Section:
    """Make the section: Table 4, McNemar's tests, a figure and, as .csv, its numbers.  table: from `table`."""
    test = table.tidy[table.tidy["split"] == "test"]
    test[["attack", "structure", "accuracy"]].to_csv(
        folder / "figures" / "accuracy_by_attack.csv", index=False, float_format="%.6g", lineterminator="\n"
    )
    parts: list[str | Table | Figure] = [table]
    parts += mcnemar(results.params, "table4_mcnemar", results.on_attacks)
    if test["images"].any():
        draw_accuracy_by_attack(folder, test, attack_titles(results.params))
        caption = f"Accuracy on the test images by attack, with 95 % intervals; white-box for {BASELINE}, "
        parts.append(Figure("accuracy_by_attack", caption + "transfer otherwise."))
    return Section("Accuracy under each attack", parts)


def summary(tidy: pd.DataFrame, split: str) -> dict[str, Any]:
    """Return accuracy by structure and attack.  tidy: the tidy frame of `table`."""
    by_structure = tidy[tidy["split"] == split].groupby("structure", sort=False)
    return {"per_attack": {name: rows.set_index("attack")["accuracy"].to_dict() for name, rows in by_structure}}


def table(results: Results) -> Table:
    """Return Table 4, beside the paper's figures where it has some."""
    params, attacks = results.params, [CLEAN, *results.attacks]
    names = ["split", "structure", "attack"]
    accuracy = statistics.accuracies(results.predictions, names)
    tidy = full(accuracy, [EVALUATED_SPLITS, results.structures, attacks], names)
    tidy.insert(3, "seen", ~tidy["attack"].isin(list(params.unseen_attacks)))
    tidy = tidy.merge(paper.per_attack(), on=["structure", "attack"], how="left", validate="many_to_one")
    wide = {}
    for split in EVALUATED_SPLITS:
        columns = {"attack": [attack_title(params, attack) for attack in attacks]}
        for structure in results.structures:
            rows = tidy[(tidy["split"] == split) & (tidy["structure"] == structure)]
            columns[structure] = intervals(rows, *ACCURACY)
            if rows["paper"].notna().any():
                columns[f"{structure}, paper"] = [number(value, 4) for value in rows["paper"]]
        wide[SPLIT_TITLES[split]] = pd.DataFrame(columns)
    return Table(
        "table4",
        f"Accuracy on the clean images and under each stored attack alone (white-box for {BASELINE}, "
        "transfer for the others).",
        tidy,
        wide,
        [INTERVALS, TRANSFER, paper.note(params, results.clean), *seeds_note(results.predictions), paper.RESTORED]
        + (["`unseen` attacks were kept from training: nobody learned from them."] if params.unseen_attacks else []),
    )


def draw_accuracy_by_attack(folder: Path, table: pd.DataFrame, titles: dict[str, str]) -> None:
    """Draw grouped bars with 95 % intervals: one group per attack, one bar per structure.

    table: columns structure, attack, accuracy, ci_low, ci_high, of one split.  titles: attack → what to write below.
    """
    structures = list(dict.fromkeys(table["structure"]))
    width = 0.8 / len(structures)
    with canvas(folder, "accuracy_by_attack", max(6.5, 0.35 * len(titles) * (len(structures) + 1)), 3.6) as figure:
        axes = figure.subplots()
        for number, structure in enumerate(structures):
            rows = table[table["structure"] == structure].set_index("attack").loc[list(titles)]
            left = np.arange(len(titles)) + (number - (len(structures) - 1) / 2) * width
            label = short(structure, LONGEST)
            bars(axes, number, left, rows["accuracy"], error_bars(rows), width * 0.94, label)
        axes.set_xticks(np.arange(len(titles)), [title_lines(title) for title in titles.values()])
        axes.set(
            ylabel="accuracy", ylim=(0, 1.02), title="Accuracy on the test images, clean and under each stored attack"
        )
        axes.grid(visible=False, axis="x")
        figure.legend(loc="outside lower center", ncols=min(len(structures), 6))
