"""Make the section on accuracy on the mixture of clean and attacked images: Table 2."""

import itertools
from typing import Any

import pandas as pd

from sparring import statistics
from sparring.params.names import BASELINE, EVALUATED_SPLITS, MIXTURE
from sparring.report import paper
from sparring.report.differences import DIFFERENCE, differences_note, mcnemar, seeds_note, trainings_of
from sparring.report.page import Section
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


def section(results: Results, table: Table) -> Section:
    """Make the section: Table 2, and McNemar's tests of any two structures.  table: from `table`."""
    return Section("Accuracy on the mixture", [table, *mcnemar(results.params, "table2_mcnemar", results.on_mixture)])


def summary(results: Results, tidy: pd.DataFrame, split: str) -> dict[str, Any]:
    """Return accuracy by structure, and the difference between any two.  tidy: the frame of `table`."""
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
