"""Make the section on where each model fails: confusion matrices, and the errors of which it is most confident."""

import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from sparring.report import page, read
from sparring.report.figure import LONGEST, canvas
from sparring.report.lettering import short
from sparring.report.page import Figure, Section, Thumbnails
from sparring.report.results import Results
from sparring.report.table import Table, records

TITLE = "Where each model fails"
FAILURES = 8  # a structure


def section(results: Results, folder: Path) -> Section:
    """Draw the confusion matrices on the mixture of test images, and its most confidently misclassified images."""
    test = results.mixture[results.mixture["split"] == "test"]
    if test.empty:
        return Section(TITLE, ["There are no test images."])
    count = len(results.classes)
    matrices = {
        name: np.bincount(
            test.loc[test["structure"] == name, "label"] * count + test.loc[test["structure"] == name, "prediction"],
            minlength=count**2,
        ).reshape(count, count)
        for name in results.structures
    }
    draw_confusion(folder, matrices, results.classes)
    note = " All trainings are counted." if len(results.params.seeds) > 1 else ""
    parts: list[str | Table | Figure] = [
        Figure(
            "confusion",
            "The mixture of test images: how many of each class (rows) are taken for which (columns); the stronger "
            f"the colour, the larger the share of the class.{note}",
        )
    ]
    wrong = test[~test["correct"]].sort_values(["confidence", "index"], ascending=[False, True])
    wrong = wrong.drop_duplicates(["structure", "index"]).groupby("structure", sort=False).head(FAILURES)
    if wrong.empty:
        return Section(TITLE, [*parts, "No structure misclassifies any of them."])
    return Section(TITLE, [*parts, _most_confident(results, wrong, folder)])


def _most_confident(results: Results, wrong: pd.DataFrame, folder: Path) -> Thumbnails:
    """Draw misclassified images as a figure, and return them for the web page.  wrong: their predictions."""
    thumbnails: dict[str, list[tuple[str, str]]] = {}
    panels: dict[str, tuple[np.ndarray, list[str]]] = {}
    for name in results.structures:
        rows = wrong[wrong["structure"] == name]
        if len(rows):
            pictures = _pictures(results, rows)
            texts = _answers(results, rows, page.isolated)
            thumbnails[name] = [(page.png(image), text) for image, text in zip(pictures, texts, strict=True)]
            panels[name] = pictures, _answers(results, rows, short)
    draw_failures(folder, panels)
    return Thumbnails(
        "failures",
        "The test images of the mixture that each model gets wrong with most confidence: class, what it is taken "
        "for, attack, confidence.",
        rows=thumbnails,
    )


def _answers(results: Results, rows: pd.DataFrame, text: Callable[[str], str]) -> list[str]:
    """Write each prediction in words: class, answer, attack and confidence. `text` makes a name fit to be shown."""
    classes = [text(name) for name in results.classes]
    return [
        f"{classes[row.label]}, taken for {classes[row.prediction]}\n{text(row.attack)}, {row.confidence:.0%}"
        for row in records(rows)
    ]


def _pictures(results: Results, rows: pd.DataFrame) -> np.ndarray:
    """Read the test images of these predictions: (R, H, W, 3) uint8 levels."""
    pictures: dict[int, np.ndarray] = {}
    for version, part in rows.groupby("attack"):
        images = read.images(results.params, results.layout, "test", str(version), ("image",))
        place = pd.Series(np.arange(len(images)), index=images.index)
        levels = images.image[place.loc[part["index"]].to_numpy()]
        pictures |= dict(zip(part["index"], np.clip(np.rint(levels), 0, 255).astype(np.uint8), strict=True))
    return np.stack([pictures[index] for index in rows["index"]])


def draw_confusion(folder: Path, matrices: dict[str, np.ndarray], names: Sequence[str]) -> None:
    """Draw the confusion matrices, one panel per structure.

    matrices: a structure's name → (C, C) counts, rows true classes, columns predicted ones.  names: the C classes.
    """
    few_classes = len(names) <= 20
    across = min(3, len(matrices))
    down = -(-len(matrices) // across)
    side = 1.2 + 0.26 * len(names) if few_classes else 4.2
    texts = [short(name) for name in names]
    with canvas(folder, "confusion", across * side, down * (side + 0.35), texts) as figure:
        panels = list(figure.subplots(down, across, squeeze=False).flat)
        for panel, (name, counts) in zip(panels, matrices.items(), strict=False):
            share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
            panel.imshow(share, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
            panel.set(title=short(name, LONGEST), xlabel="taken for", ylabel="true class")
            panel.grid(visible=False)
            if few_classes:
                panel.set_xticks(np.arange(len(names)), texts, rotation=90)
                panel.set_yticks(np.arange(len(names)), texts)
                for row, column in zip(*np.nonzero(counts), strict=True):
                    colour = "white" if share[row, column] > 0.5 else "black"
                    look = {"ha": "center", "va": "center", "fontsize": 6.5, "color": colour}
                    panel.text(column, row, f"{counts[row, column]}", **look)
        for panel in panels[len(matrices) :]:
            panel.set_visible(False)


def draw_failures(folder: Path, rows: dict[str, tuple[np.ndarray, list[str]]]) -> None:
    """Draw one row of images per structure.

    rows: its name → (R, H, W, 3) uint8 images, and the text below each, whose names `short` has shortened.
    """
    columns = max(len(images) for images, _ in rows.values())
    texts_below = [text for _, texts in rows.values() for text in texts]
    with canvas(folder, "failures", 1.05 * columns + 1.1, 1.45 * len(rows) + 0.2, texts_below) as figure:
        axes = figure.subplots()
        for number, (images, texts) in enumerate(rows.values()):
            for column, (image, text) in enumerate(zip(images, texts, strict=True)):
                box = (column + 0.05, column + 0.95, number + 0.65, number)
                axes.imshow(image, interpolation="none", extent=box, aspect="auto")
                lines = "\n".join(textwrap.fill(line, 22) for line in text.split("\n"))  # no wider than the image
                axes.text(column + 0.5, number + 0.67, lines, fontsize=6.5, ha="center", va="top")
        axes.set(xlim=(0, columns), ylim=(len(rows), 0), xticks=[])
        axes.set_yticks(np.arange(len(rows)) + 0.32, [short(name, LONGEST) for name in rows])
        axes.tick_params(length=0)
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
