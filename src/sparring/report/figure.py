"""How the report's figures look and are saved, each as SVG and a few as PNG too: same data, same bytes."""

import io
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from sparring.params import Params
from sparring.params.names import CLEAN
from sparring.report.lettering import families, short
from sparring.report.table import attack_title

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
PICTURES = ("overview", "whitebox_curve", "accuracy_by_attack", "gallery")  # as PNG too, which git keeps
PICTURE_BYTES = 150_000  # of a PNG: git keeps every version of it
LONGEST = 20  # characters of a structure's name that a legend has room for
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


@contextmanager
def canvas(
    folder: Path, name: str, width: float, height: float, texts: Iterable[str] = (), picture: bool = False
) -> Iterator[Figure]:
    """Yield a figure of that size in inches, and save it when the block ends well: in a report's folder as
    vector/<name>.svg and, where it is one of PICTURES or `picture` is true, as figures/<name>.png.

    texts: the drawn texts that may be in any script, as names are; fonts are chosen for them.
    """
    drawing, drawn = folder / "vector" / f"{name}.svg", folder / "figures" / f"{name}.png"
    with style.context(["default", STYLE | {"font.family": families(texts)}]):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
        drawing.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(drawing, dpi=150, metadata={"Date": None, "Creator": None}, transparent=True)
        if picture or name in PICTURES:
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png", dpi=150)
            drawn.parent.mkdir(parents=True, exist_ok=True)
            drawn.write_bytes(small_png(Image.open(buffer)))


def small_png(picture: Image.Image) -> bytes:
    """Encode a picture as PNG with a palette, of PICTURE_BYTES at most: with as many colours as fit into that, and
    where 32 are too many, with fewer pixels."""
    picture, colours = picture.convert("RGB"), 256
    while len(content := _with_palette(picture, colours)) > PICTURE_BYTES:
        if colours > 32:
            colours //= 2
        else:  # NEAREST: blends of neighbours would be colours of their own, and make the file larger
            width, height = picture.size
            picture = picture.resize((-(-3 * width // 4), -(-3 * height // 4)), Image.Resampling.NEAREST)
    return content


def _with_palette(picture: Image.Image, colours: int) -> bytes:
    """Encode a picture as PNG with so many colours. They are chosen from a ninth of the pixels, as all take seconds."""
    some = picture.resize([-(-side // 3) for side in picture.size], Image.Resampling.NEAREST)
    palette = some.quantize(colours, Image.Quantize.MAXCOVERAGE, kmeans=1)
    buffer = io.BytesIO()
    picture.quantize(palette=palette, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def title_lines(title: str, limit: int = 12) -> str:
    """Shorten each line of a title, which is a name, to `limit` characters by `short`."""
    return "\n".join(short(line, limit) for line in title.split("\n"))


def attack_titles(params: Params) -> dict[str, str]:
    """Return the titles in figures of clean images and of each attack, by name; each word is a line."""
    return {name: attack_title(params, name).replace(" ", "\n") for name in (CLEAN, *params.all_attacks)}


def error_bars(rows: pd.DataFrame, column: str = "accuracy") -> np.ndarray:
    """Return the distances (2, N) from a column to both ends of its interval, as matplotlib wants them: none negative.

    rows: with the columns ci_low and ci_high.
    """
    value = rows[column].to_numpy(float)
    ends = np.stack([value - rows["ci_low"].to_numpy(float), rows["ci_high"].to_numpy(float) - value])
    return ends.clip(min=0)


def shared_legend(figure: Figure, columns: int) -> None:
    """Add one legend below all panels, with each label once; none where nothing is labelled."""
    handles = {
        label: line for axes in figure.axes for line, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    if handles:
        figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=columns)


def line_look(number: int) -> dict[str, Any]:
    """Return the colour and dashes, for matplotlib, of the line of this number. Lines differ in one of the two."""
    return {"color": COLOURS[number % len(COLOURS)], "linestyle": DASHES[number // len(COLOURS) % len(DASHES)]}


def bars(
    axes: Axes, number: int, left: np.ndarray, heights: pd.Series, ends: np.ndarray | None, width: float, label: str
) -> None:
    """Draw one bar in each group.

    number: its place within the groups, which decides its look.  left: the bars' positions.
    ends: from `error_bars`, or None.
    """
    axes.bar(
        left,
        heights,
        width,
        yerr=ends,
        label=label,
        color=COLOURS[number % len(COLOURS)],
        hatch=HATCHES[number % len(HATCHES)],
        edgecolor="white",
        error_kw={"elinewidth": 0.9, "ecolor": "#222222", "capsize": 2},
    )
