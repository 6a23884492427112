"""Make the section on common corruptions: accuracy on held-out images that were changed without any attack."""

from pathlib import Path

import pandas as pd

from sparring import statistics
from sparring.params.names import CLEAN, CORRUPTIONS, STRENGTHS
from sparring.report import read
from sparring.report.figure import LONGEST, canvas, line_look
from sparring.report.lettering import short
from sparring.report.page import Figure, Section
from sparring.report.results import Results
from sparring.report.table import ACCURACY, INTERVALS, Table, full, intervals

TITLE = "Common corruptions"


def section(results: Results, table: Table | None, folder: Path) -> Section:
    """Make the section: the table, and a figure where there are held-out images.  table: from `table`."""
    if table is None:
        return Section(TITLE, [results.why_left_out("corruptions")])
    parts: list[str | Table | Figure] = [table]
    if table.tidy["accuracy"].notna().any():
        draw_corruptions(folder, table.tidy)
        caption = "Accuracy on the held-out images by strength of each corruption, with 95 % intervals."
        parts.append(Figure("corruptions", caption))
    return Section(TITLE, parts)


def table(results: Results) -> Table | None:
    """Return accuracy by corruption and strength; None where corruptions were left out."""
    if "corruptions" in results.left_out:
        return None
    rows = read.corruptions(results.layout, results.structures, results.clean["heldout"])
    single = statistics.accuracies(rows, ["structure", "corruption", "strength"])
    with_all = pd.concat([rows, rows[rows["strength"] > 0].assign(corruption="all")])
    mean = statistics.accuracies(with_all, ["structure", "corruption"])
    structures = results.structures
    kinds = [(CLEAN, 0), *((name, strength) for name in CORRUPTIONS for strength in STRENGTHS)]
    index = [(structure, *kind) for structure in structures for kind in kinds]
    tidy = single.reindex(pd.MultiIndex.from_tuples(index, names=["structure", "corruption", "strength"])).reset_index()
    names = [CLEAN, *CORRUPTIONS, "all"]
    means = full(mean, [structures, names], ["structure", "corruption"])
    columns: dict[str, list[str]] = {"corruption": names}
    for structure in structures:
        columns[structure] = intervals(means[means["structure"] == structure], *ACCURACY)
    wide = {"Mean over the strengths": pd.DataFrame(columns)}
    for structure in structures:
        rows = tidy[(tidy["structure"] == structure) & (tidy["strength"] > 0)]
        by_strength = {str(strength): rows[rows["strength"] == strength] for strength in STRENGTHS}
        cells = {name: intervals(part, *ACCURACY) for name, part in by_strength.items()}
        wide[structure] = pd.DataFrame({"corruption": list(CORRUPTIONS), **cells})
    return Table(
        "corruptions",
        "Accuracy on the held-out images under common corruptions of five strengths.",
        tidy,
        wide,
        [
            "In the manner of Hendrycks and Dietterich (2019, arXiv 1903.12261); docs/method.md has the strengths. "
            "Nobody trained on them, except that the attack `gaussian` is noise too. The mean's interval counts each "
            "image once, as its corrupted versions are no new images. " + INTERVALS
        ],
    )


def draw_corruptions(folder: Path, table: pd.DataFrame) -> None:
    """Draw accuracy by strength (0: clean) with 95 % intervals: one panel per corruption, one line per structure.

    table: columns structure, corruption, strength, accuracy, ci_low, ci_high.
    """
    with canvas(folder, "corruptions", 8, 4.8) as figure:
        panels = list(figure.subplots(2, -(-len(CORRUPTIONS) // 2), sharex=True, sharey=True).flat)
        for panel, name in zip(panels, CORRUPTIONS, strict=True):
            for number, (structure, rows) in enumerate(table.groupby("structure", sort=False)):
                line = rows[rows["corruption"].isin([CLEAN, name])]
                look, label = line_look(number), short(str(structure), LONGEST)
                ends = line["ci_low"], line["ci_high"]
                panel.fill_between(line["strength"], *ends, color=look["color"], alpha=0.15, lw=0)
                panel.plot(line["strength"], line["accuracy"], marker="o", ms=3, label=label, **look)
            panel.set(title=name, ylim=(0, 1.02), xticks=[0, *STRENGTHS])
        figure.supxlabel("strength (0: clean)", fontsize="medium")
        figure.supylabel("accuracy, held-out images", fontsize="medium")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=6)
