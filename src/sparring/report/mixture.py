"""Make the section on accuracy on the mixture of clean and attacked images: Table 2."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sparring import statistics
from sparring.params.names import BASELINE, EVALUATED_SPLITS, MIXTURE
from sparring.report import paper
from sparring.report.differences import DIFFERENCE, differences_note, mcnemar, seeds_note, trainings_of
from sparring.report.figure import COLOURS, LONGEST, canvas, error_bars
from sparring.report.lettering import short
from sparring.report.page import Figure, Section
from sparring.report.results import Results
from sparring.report.table import (
    ACCURACY,
    INTERVALS,
    SPLIT_TITLES,
    TRANSFER,
    Table,
    full,
    intervals,
    number,
)


def section(results: Results, table: Table, folder: Path) -> Section:
    """Make the section: Table 2, its figure, and a test of any two structures.  table: from `table`."""
    parts: list[Table | Figure] = [table]
    if table.tidy["images"].any():
        draw_mixture(folder, table.tidy)
        parts.append(Figure("mixture", "Accuracy on the mixture, with 95 % intervals."))
    return Section("Accuracy on the mixture", [*parts, *mcnemar(results.params, "table2_mcnemar", results.on_mixture)])


def summary(results: Results, tidy: pd.DataFrame, split: str) -> dict[str, Any]:
    """Return accuracy by structure, and the difference between any two.  tidy: the tidy frame of `table`."""
    rows = tidy[tidy["split"] == split].set_index("structure")
    return {
        "mixture": rows[["accuracy", "ci_low", "ci_high", "sd"]].to_dict("index"),
        "differences": {
            f"{later} minus {first}": results.compared(split, later, first)
            for first, later in itertools.combinations(results.structures, 2)
            if len(results.clean[split])
        },
    }


def table(results: Results) -> Table:
    """Return Table 2, with the difference of each structure to the baseline."""
    params = results.params
    differences = results.on_mixture[[*DIFFERENCE, "trainings"]].reset_index()
    differences = differences[differences["other"] == BASELINE].drop(columns=["attack", "other"])
    accuracy = statistics.accuracies(results.mixture, ["split", "structure"])
    figures = accuracy.join(differences.set_index(["split", "structure"]))
    tidy = full(figures, [EVALUATED_SPLITS, results.structures], ["split", "structure"])
    tidy.insert(2, "attack", MIXTURE)
    tidy["paper"] = tidy["structure"].map(paper.mixture(params))
    columns: dict[str, list[str]] = {"structure": results.structures}
    for split in EVALUATED_SPLITS:
        rows = tidy[tidy["split"] == split]
        title = SPLIT_TITLES[split].lower()
        columns[title] = intervals(rows, *ACCURACY)
        columns[f"minus {BASELINE}, {title}"] = intervals(rows, *DIFFERENCE)
    columns["paper"] = [number(value, 4) for value in tidy.loc[tidy["split"] == EVALUATED_SPLITS[0], "paper"]]
    return Table(
        "table2",
        f"Accuracy on a mixture with an adversarial share of {params.mixture.adv_ratio:g} "
        f"(white-box for {BASELINE}, transfer for the others).",
        tidy,
        {"": pd.DataFrame(columns)},
        [
            "The mixture is one fixed draw, the same for every structure: each image once, clean or under one of the "
            "seen attacks, evenly over classes and attacks. " + INTERVALS + " " + differences_note(trainings_of(tidy)),
            TRANSFER,
            paper.note(params, results.clean),
            *seeds_note(results.predictions),
        ],
    )


def draw_mixture(folder: Path, table: pd.DataFrame) -> None:
    """Draw accuracy on the mixture with 95 % intervals: one line per structure, one mark per split, a diamond for the
    paper.

    table: columns split, structure, accuracy, ci_low, ci_high, paper.
    """
    structures = list(dict.fromkeys(table["structure"]))
    with canvas(folder, "mixture", 6.5, 1.3 + 0.5 * len(structures)) as figure:
        axes = figure.subplots()
        for number, (split, name, marker) in enumerate((("test", "test", "o"), ("heldout", "held-out", "s"))):
            rows = table[table["split"] == split]
            axes.errorbar(
                rows["accuracy"],
                np.arange(len(structures)) + 0.2 * number - 0.1,
                xerr=error_bars(rows),
                fmt=marker,
                label=f"{name} images",
                color=COLOURS[number],
                capsize=3,
            )
        paper = table[table["split"] == "test"]
        if paper["paper"].notna().any():
            axes.plot(
                paper["paper"],
                np.arange(len(structures)),
                "D",
                label="paper (CIFAR-10)",
                color="#777777",
                fillstyle="none",
            )
        axes.set_yticks(np.arange(len(structures)), [short(structure, LONGEST) for structure in structures])
        axes.set(xlabel="accuracy on the mixture", ylim=(len(structures) - 0.5, -0.5))
        figure.legend(loc="outside upper center", ncols=3)
