"""The report's figures, each as SVG and a few as PNG too: same data, same bytes."""

import io
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from sparring.params.names import CLEAN, CORRUPTIONS, STRENGTHS
from sparring.report.lettering import families, short

COLOURS = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#D55E00",
    "#000000",
)  # Okabe & Ito: safe for all eyes
HATCHES = ("", "//", "..", "xx")  # tells bars apart in print, and once the colours are used up
DASHES = ("-", "--", ":", "-.")
PICTURES = ("mixture", "whitebox_curve", "accuracy_by_attack", "gallery")  # as PNG too, which git keeps
PICTURE_BYTES = 150_000  # of a PNG: git keeps every version of it
LONGEST = 20  # characters of a structure's name that a legend has room for
MAGNIFICATIONS = (1, 2, 5, 10, 20, 50, 100)
STYLE = {
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "legend.frameon": False,
    "text.parse_math": False,  # no text here is a formula, and two `$` in names would begin and end one
    "svg.hashsalt": "sparring",  # its names within a file would be drawn anew each time
    "image.composite_image": False,  # each picture by itself: in SVG ten times faster than all as one
}


@dataclass(frozen=True)
class Example:
    """One column of the gallery: (R, H, W, 3) images as stored, in levels, and what the source model takes them for."""

    title: str
    image: np.ndarray
    prediction: list[str]


@contextmanager
def _figure(folder: Path, name: str, width: float, height: float, texts: Iterable[str] = ()) -> Iterator[Figure]:
    """A figure of that size in inches, saved when the block ends well: in a report's folder as vector/<name>.svg, and
    where it is one of PICTURES as figures/<name>.png.

    texts: what is drawn of names that may be in any script.
    """
    drawing, picture = folder / "vector" / f"{name}.svg", folder / "figures" / f"{name}.png"
    with style.context(["default", STYLE | {"font.family": families(texts)}]):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
        drawing.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(drawing, dpi=150, metadata={"Date": None, "Creator": None}, transparent=True)
        if name in PICTURES:
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png", dpi=150)
            picture.parent.mkdir(parents=True, exist_ok=True)
            picture.write_bytes(small_png(Image.open(buffer)))


def small_png(picture: Image.Image) -> bytes:
    """A picture as PNG with a palette, of PICTURE_BYTES at most: with as many colours as fit into that, and where 32
    are too many, with fewer pixels."""
    picture, colours = picture.convert("RGB"), 256
    while len(content := _with_palette(picture, colours)) > PICTURE_BYTES:
        if colours > 32:
            colours //= 2
        else:  # NEAREST: blends of neighbours would be colours of their own, and make the file larger
            width, height = picture.size
            picture = picture.resize((-(-3 * width // 4), -(-3 * height // 4)), Image.Resampling.NEAREST)
    return content


def _with_palette(picture: Image.Image, colours: int) -> bytes:
    """The colours are chosen from every third pixel of every third row, as choosing them from all takes seconds."""
    some = picture.resize([-(-side // 3) for side in picture.size], Image.Resampling.NEAREST)
    palette = some.quantize(colours, Image.Quantize.MAXCOVERAGE, kmeans=1)
    buffer = io.BytesIO()
    picture.quantize(palette=palette, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def gallery(folder: Path, names: Sequence[str], clean: Example, attacked: Sequence[Example]) -> None:
    """One row an image: clean, then under each attack with its magnified difference to the right.

    names: (R,) the images' classes.
    """
    columns, count = 1 + 2 * len(attacked), len(names)
    texts = [short(name) for example in (clean, *attacked) for name in (*names, *example.prediction)]
    with _figure(folder, "gallery", 0.82 * columns + 1.1, 0.85 * count + 0.9, texts) as figure:
        axes = figure.subplots()  # a single one for all pictures: an axes for each takes ten times as long
        axes.set_xticks([])
        axes.set_yticks(np.arange(count) + 0.41, [short(name) for name in names])
        axes.tick_params(length=0)
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        _column(axes, 0, clean.title, clean.image / 255)
        _guesses(axes, 0, clean, names)
        for number, example in enumerate(attacked):
            change = (example.image.astype(float) - clean.image.astype(float)) / 255
            factor = magnification(change)
            _column(axes, 2 * number + 1, example.title, example.image.astype(float) / 255)
            _guesses(axes, 2 * number + 1, example, names)
            _column(axes, 2 * number + 2, f"change ×{factor}", np.clip(0.5 + factor * change, 0, 1), "#555555")
        axes.set(xlim=(0, columns), ylim=(count, 0))  # imshow narrows both to the last picture
        figure.supxlabel(
            "Below each image: what the pretrained net takes it for, in bold where wrong. Change: grey is none.",
            fontsize=8,
        )


def _column(axes: Axes, left: int, title: str, pictures: np.ndarray, colour: str = "black") -> None:
    axes.text(left + 0.46, -0.06, _lines(title), fontsize=8, ha="center", va="bottom", color=colour)
    for row, picture in enumerate(pictures):
        box = (left + 0.05, left + 0.87, row + 0.82, row)
        axes.imshow(picture, interpolation="none", extent=box, aspect="equal")  # SVG: the pixels as they are


def _guesses(axes: Axes, left: int, example: Example, names: Sequence[str]) -> None:
    for row, (prediction, name) in enumerate(zip(example.prediction, names, strict=True)):
        weight = "normal" if prediction == name else "bold"
        axes.text(left + 0.46, row + 0.83, short(prediction), fontsize=7, ha="center", va="top", weight=weight)


def _lines(title: str, limit: int = 12) -> str:
    """A title whose lines are names, each short."""
    return "\n".join(short(line, limit) for line in title.split("\n"))


def magnification(change: np.ndarray) -> int:
    """The largest round factor at which all but 5 % of the values still fit between black and white."""
    largest = float(np.quantile(np.abs(change), 0.95)) if change.size else 0.0
    return max([factor for factor in MAGNIFICATIONS if factor * largest <= 0.5], default=1)


def curves(folder: Path, histories: dict[str, pd.DataFrame]) -> None:
    """Loss, accuracy and, where there is a detector, its accuracy, by epoch; a line a model."""
    detectors = any("detector_accuracy" in history for history in histories.values())
    with _figure(folder, "curves", 11 if detectors else 7.5, 3.4) as figure:
        panels = list(figure.subplots(1, 3 if detectors else 2, squeeze=False)[0])
        for number, (name, history) in enumerate(histories.items()):
            colour, marker = COLOURS[number % len(COLOURS)], "o" if len(history) <= 30 else ""
            look = {"color": colour, "marker": marker, "markersize": 3, "linewidth": 1.4}
            dash, label = DASHES[number // len(COLOURS) % len(DASHES)], short(name, LONGEST)
            panels[0].plot(history["epoch"] + 1, history["loss"], label=label, linestyle=dash, **look)
            panels[1].plot(history["epoch"] + 1, history["accuracy"], color=colour, linestyle=":", linewidth=1.2)
            if history["validation_accuracy"].notna().any():
                panels[1].plot(history["epoch"] + 1, history["validation_accuracy"], linestyle=dash, **look)
            if "detector_accuracy" in history:
                panels[2].plot(history["epoch"] + 1, history["detector_accuracy"], label=label, linestyle=dash, **look)
        panels[0].set(title="Training loss", ylim=(0, None))
        panels[1].set(title="Accuracy\n(dotted: training images, solid: validation images)", ylim=(0, 1.02))
        if detectors:
            panels[2].set(title="Accuracy of the detector\n(training images)", ylim=(0, 1.02))
            panels[2].legend()
        panels[0].legend()
        for panel in panels:
            panel.set_xlabel("epoch")
            panel.xaxis.set_major_locator(MaxNLocator(integer=True))


def accuracy_by_attack(folder: Path, table: pd.DataFrame, titles: dict[str, str]) -> None:
    """Grouped bars with 95 % intervals; a group an attack, a bar a structure.

    table: columns structure, attack, accuracy, ci_low, ci_high, of one split.  titles: attack → what to write below.
    """
    structures = list(dict.fromkeys(table["structure"]))
    width = 0.8 / len(structures)
    with _figure(folder, "accuracy_by_attack", max(6.5, 0.35 * len(titles) * (len(structures) + 1)), 3.6) as figure:
        axes = figure.subplots()
        for number, structure in enumerate(structures):
            rows = table[table["structure"] == structure].set_index("attack").loc[list(titles)]
            left = np.arange(len(titles)) + (number - (len(structures) - 1) / 2) * width
            axes.bar(
                left,
                rows["accuracy"],
                width * 0.94,
                yerr=_bars(rows),
                label=short(structure, LONGEST),
                color=COLOURS[number % len(COLOURS)],
                hatch=HATCHES[number % len(HATCHES)],
                edgecolor="white",
                error_kw={"elinewidth": 0.9, "ecolor": "#222222", "capsize": 2},
            )
        axes.set_xticks(np.arange(len(titles)), [_lines(title) for title in titles.values()])
        axes.set(
            ylabel="accuracy", ylim=(0, 1.02), title="Accuracy on the test images, clean and under each stored attack"
        )
        axes.grid(visible=False, axis="x")
        figure.legend(loc="outside lower center", ncols=min(len(structures), 6))


def mixture(folder: Path, table: pd.DataFrame) -> None:
    """Accuracy on the mixture with 95 % intervals; a line a structure, a mark a split, a diamond for the paper.

    table: columns split, structure, accuracy, ci_low, ci_high, paper.
    """
    structures = list(dict.fromkeys(table["structure"]))
    with _figure(folder, "mixture", 6.5, 1.3 + 0.5 * len(structures)) as figure:
        axes = figure.subplots()
        for number, (split, name, marker) in enumerate((("test", "test", "o"), ("heldout", "held-out", "s"))):
            rows = table[table["split"] == split]
            axes.errorbar(
                rows["accuracy"],
                np.arange(len(structures)) + 0.2 * number - 0.1,
                xerr=_bars(rows),
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


def _bars(rows: pd.DataFrame, column: str = "accuracy") -> np.ndarray:
    """Distances to both ends of the interval, as matplotlib wants them; rounding must not make them negative."""
    value = rows[column].to_numpy(float)
    ends = np.stack([value - rows["ci_low"].to_numpy(float), rows["ci_high"].to_numpy(float) - value])
    return ends.clip(min=0)


def whitebox_curve(folder: Path, table: pd.DataFrame) -> None:
    """Accuracy by the attack's radius, a line a structure; radii stand side by side, as they double.

    table: columns structure, eps (in 1/255), accuracy, ci_low, ci_high.
    """
    levels = sorted(table["eps"].unique())
    with _figure(folder, "whitebox_curve", 6.5, 3.6) as figure:
        axes = figure.subplots()
        for number, (name, rows) in enumerate(table.groupby("structure", sort=False)):
            rows = rows.set_index("eps").loc[levels]
            axes.errorbar(
                np.arange(len(levels)) + 0.06 * number,
                rows["accuracy"],
                _bars(rows),
                label=short(str(name), LONGEST),
                color=COLOURS[number % len(COLOURS)],
                linestyle=DASHES[number // len(COLOURS) % len(DASHES)],
                marker="o",
                markersize=3,
                capsize=2,
            )
        axes.set_xticks(np.arange(len(levels)), [str(level) for level in levels])
        axes.set(xlabel="radius in L∞, in 1/255", ylabel="accuracy", ylim=(-0.02, 1.02))
        figure.legend(loc="outside lower center", ncols=min(table["structure"].nunique(), 6))


def detector_roc_by_attack(folder: Path, panels: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]]) -> None:
    """A panel an attack, in it a ROC line for each detector.

    panels: title → legend → (false-positive rates, true-positive rates); the same legends in each.
    """
    columns = min(len(panels), 4)
    rows = -(-len(panels) // columns)
    with _figure(folder, "detector_roc_by_attack", 2.3 * columns + 0.3, 2.4 * rows + 0.6) as figure:
        grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
        for axes, (title, lines) in zip(grid, panels.items(), strict=False):
            axes.plot([0, 1], [0, 1], color="#999999", linestyle=":", linewidth=1)
            axes.axvline(0.05, color="#bbbbbb", linewidth=0.8)
            for number, (name, (false, true)) in enumerate(lines.items()):
                look = {"color": COLOURS[number % len(COLOURS)], "linestyle": DASHES[number % len(DASHES)]}
                axes.plot(false, true, label=short(name, LONGEST), **look)
            axes.set(xlim=(0, 1), ylim=(0, 1.01), aspect="equal")
            axes.set_title(_lines(title, LONGEST), fontsize=9)
        for axes in grid[len(panels) :]:
            axes.remove()
        figure.supxlabel("clean images accused (grey line: 5 %)", fontsize=9)
        figure.supylabel("attacked images found", fontsize=9)
        handles, labels = grid[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))


def corruptions(folder: Path, table: pd.DataFrame) -> None:
    """Accuracy by strength, 0 being clean, with 95 % intervals; a panel a corruption, a line a structure.

    table: columns structure, corruption, strength, accuracy, ci_low, ci_high.
    """
    with _figure(folder, "corruptions", 8, 4.8) as figure:
        panels = list(figure.subplots(2, -(-len(CORRUPTIONS) // 2), sharex=True, sharey=True).flat)
        for panel, name in zip(panels, CORRUPTIONS, strict=True):
            for number, (structure, rows) in enumerate(table.groupby("structure", sort=False)):
                shown = rows[rows["corruption"].isin([CLEAN, name])]
                colour, dash = COLOURS[number % len(COLOURS)], DASHES[number // len(COLOURS) % len(DASHES)]
                panel.fill_between(shown["strength"], shown["ci_low"], shown["ci_high"], color=colour, alpha=0.15, lw=0)
                look = {"marker": "o", "ms": 3, "color": colour, "label": short(str(structure), LONGEST)}
                panel.plot(shown["strength"], shown["accuracy"], dash, **look)
            panel.set(title=name, ylim=(0, 1.02), xticks=[0, *STRENGTHS])
        figure.supxlabel("strength (0: clean)", fontsize="medium")
        figure.supylabel("accuracy, held-out images", fontsize="medium")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=6)


def detector_roc(folder: Path, lines: dict[str, tuple[np.ndarray, np.ndarray, str]]) -> None:
    """A ROC line for each detector. lines: its name → (false-positive rates, true-positive rates, area below)."""
    with _figure(folder, "detector_roc", 4.6, 4.6) as figure:
        axes: Axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color="#999999", linestyle=":", linewidth=1, label="chance")
        axes.axvline(0.05, color="#bbbbbb", linewidth=0.8)
        for number, (name, (false, true, area)) in enumerate(lines.items()):
            dash, label = DASHES[number // len(COLOURS) % len(DASHES)], f"{short(name, LONGEST)} (area {area})"
            axes.plot(false, true, color=COLOURS[number % len(COLOURS)], linestyle=dash, label=label)
        axes.set(
            xlabel="clean images accused",
            ylabel="adversarial images found",
            xlim=(0, 1),
            ylim=(0, 1.01),
            aspect="equal",
        )
        axes.set_title(
            "Detector on the mixture of test images\n(grey line: 5 % of the clean images accused)", fontsize=9
        )
        axes.legend(loc="lower right")


def success(folder: Path, table: pd.DataFrame, titles: dict[str, str]) -> None:
    """How often each attack fools the source model: before storage, merely rounded, and as stored with 95 % intervals.

    table: columns attack, success, ci_low, ci_high, success_float, success_rounded, of one split.  titles: attack →
    what to write below.
    """
    rows = table.set_index("attack").loc[list(titles)]
    columns = {"as the attack left them": "success_float", "rounded": "success_rounded", "as stored": "success"}
    with _figure(folder, "success", max(6.5, 1.2 * len(titles)), 3.4) as figure:
        axes = figure.subplots()
        for number, (title, column) in enumerate(columns.items()):
            axes.bar(
                np.arange(len(titles)) + (number - 1) * 0.27,
                rows[column],
                0.25,
                yerr=_bars(rows, "success") if column == "success" else None,
                label=title,
                color=COLOURS[number],
                hatch=HATCHES[number],
                edgecolor="white",
                error_kw={"elinewidth": 0.9, "ecolor": "#222222", "capsize": 2},
            )
        axes.set_xticks(np.arange(len(titles)), [_lines(title) for title in titles.values()])
        axes.set(ylabel="success", ylim=(0, 1.02), title="Success on the pretrained net, test images")
        axes.grid(visible=False, axis="x")
        figure.legend(loc="outside lower center", ncols=3)


def confusion(folder: Path, matrices: dict[str, np.ndarray], names: Sequence[str]) -> None:
    """A panel a structure. matrices: (C, C) counts, rows true classes, columns predicted ones.  names: (C,)."""
    few = len(names) <= 20
    across = min(3, len(matrices))
    down = -(-len(matrices) // across)
    side = 1.2 + 0.26 * len(names) if few else 4.2
    texts = [short(name) for name in names]
    with _figure(folder, "confusion", across * side, down * (side + 0.35), texts) as figure:
        panels = list(figure.subplots(down, across, squeeze=False).flat)
        for panel, (name, counts) in zip(panels, matrices.items(), strict=False):
            share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
            panel.imshow(share, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
            panel.set(title=short(name, LONGEST), xlabel="taken for", ylabel="true class")
            panel.grid(visible=False)
            if few:
                panel.set_xticks(np.arange(len(names)), texts, rotation=90)
                panel.set_yticks(np.arange(len(names)), texts)
                for row, column in zip(*np.nonzero(counts), strict=True):
                    colour = "white" if share[row, column] > 0.5 else "black"
                    look = {"ha": "center", "va": "center", "fontsize": 6.5, "color": colour}
                    panel.text(column, row, f"{counts[row, column]}", **look)
        for panel in panels[len(matrices) :]:
            panel.set_visible(False)


def failures(folder: Path, rows: dict[str, tuple[np.ndarray, list[str]]]) -> None:
    """A row a structure. rows: its name → (R, H, W, 3) uint8 images and what to write below each.

    What is written is lines of names that `short` has made.
    """
    columns = max(len(images) for images, _ in rows.values())
    written = [text for _, texts in rows.values() for text in texts]
    with _figure(folder, "failures", 1.05 * columns + 1.1, 1.45 * len(rows) + 0.2, written) as figure:
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
