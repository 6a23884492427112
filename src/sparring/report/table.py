"""Write tables as data (.csv, one number per row) and for reading (.md, .tex), and format their cells."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from sparring.params import Params
from sparring.params.attacks import Attack
from sparring.params.names import CLEAN, EVALUATED_SPLITS
from sparring.report import escape

SPLIT_TITLES = {"test": "Test images", "heldout": "Held-out images"}
TRANSFER = (
    "Every stored attack was made against the pretrained net. `baseline` is that net, so its figures are white-box; "
    "for every other structure they are *transfer*: the attacker never saw the defended model. Against an attacker who "
    "aims at the defended model, its accuracy can be expected to be far lower than printed here."
)
INTERVALS = (
    "In brackets: 95 % Wilson intervals. They tell how much a figure could differ with other images, not with another "
    "training run."
)
ACCURACY = ("accuracy", "ci_low", "ci_high", "sd")


@dataclass(frozen=True)
class Table:
    """A table of the report.

    tidy: its data, mostly one number per row, for .csv.  wide: heading → frame of formatted cells, for .md, .tex and
    the web page; the heading is empty where there is only one frame.
    """

    name: str
    caption: str
    tidy: pd.DataFrame
    wide: dict[str, pd.DataFrame]
    notes: list[str] = field(default_factory=list)

    @property
    def label(self) -> str:
        """Return a label such as `Table 2.`, empty for a table that has no number in the paper."""
        number = self.name.removeprefix("table")
        return f"Table {number}." if number.isdigit() else ""


def plain(name: str, caption: str, frame: pd.DataFrame, notes: Sequence[str] = ()) -> Table:
    """Make a table whose one frame is both its data and, with its cells printed as they are, what is read."""
    return Table(name, caption, frame, {"": frame.astype(str)}, list(notes))


def number(value: float | None, digits: int = 3) -> str:
    """Format a number; `-` stands for one that is not known."""
    return "-" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def with_interval(value: float, low: float, high: float, sd: float = math.nan) -> str:
    """Format a number with its interval, as in `0.841 [0.800, 0.875]`.

    Over several trainings their standard deviation comes between the two: `0.841 ± 0.006 [0.800, 0.875]`.
    """
    spread = "" if math.isnan(sd) else f" ± {number(sd)}"
    return "-" if math.isnan(value) else f"{number(value)}{spread} [{number(low)}, {number(high)}]"


def intervals(frame: pd.DataFrame, *columns: str) -> list[str]:
    """Format each row's value with its interval, as `with_interval`.

    columns: of the value, of its interval's two ends and, where there is one, of its sd.
    """
    return [with_interval(*row) for row in frame[list(columns)].to_numpy(float)]


def levels(radius: float | None) -> str:
    """Format a radius in 8-bit levels, as the store keeps it; empty where there is none."""
    return "" if radius is None or math.isnan(radius) else f"{round(255 * radius)}/255"


def radius(attack: Attack) -> str:
    """Format an attack's radius, as in `Linf 8/255` or `L2 0.5`; empty for an attack without one."""
    if attack.linf is not None:
        return f"Linf {round(255 * attack.linf)}/255"
    return "" if attack.l2 is None else f"L2 {attack.l2:g}"


def attack_title(params: Params, attack: str) -> str:
    """Return the attack's name, with `(unseen)` where no structure trained on it."""
    return f"{attack} (unseen)" if attack in params.unseen_attacks else attack


def records(frame: pd.DataFrame) -> Iterator[Any]:
    """Iterate over the rows of a frame as named tuples. (They are typed Any, so that mypy allows their attributes.)"""
    return iter(frame.itertuples())


def full(frame: pd.DataFrame, levels: Sequence[Sequence[str]], names: list[str]) -> pd.DataFrame:
    """Give a frame a row for every combination of the levels, in order. New rows have nan, and 0 as counts.

    levels: the values of each level of the frame's index, which becomes the columns `names`.
    """
    rows = frame.reindex(pd.MultiIndex.from_product(levels, names=names)).reset_index()
    counts = rows.columns.intersection(["images", "unchanged", "correct_before"])
    return rows.fillna(dict.fromkeys(counts, 0)).astype(dict.fromkeys(counts, "int64"))


def own_model(params: Params, accuracy: pd.DataFrame) -> pd.DataFrame:
    """Format a model's accuracy on clean images and under each stored attack as a frame with a column for each split.

    accuracy: from statistics.accuracies by split and attack.
    """
    attacks = (CLEAN, *params.attacks, *params.unseen_attacks)
    tidy = full(accuracy, [EVALUATED_SPLITS, attacks], ["split", "attack"])
    columns = {"attack": [attack_title(params, attack) for attack in attacks]}
    for split in EVALUATED_SPLITS:
        columns[SPLIT_TITLES[split].lower()] = intervals(tidy[tidy["split"] == split], *ACCURACY)
    return pd.DataFrame(columns)


def grid(frame: pd.DataFrame) -> str:
    """Format a frame as a Markdown table, in which headings and cells are escaped."""
    text: str = _escaped(frame, escape.markdown).to_markdown(index=False, disable_numparse=True)
    return text


def markdown(table: Table) -> str:
    """Format a table in Markdown: caption, frames and notes."""
    parts = [f"**{table.label}** {table.caption}" if table.label else table.caption]
    for heading, frame in table.wide.items():
        parts += [f"*{escape.markdown(heading)}*"] if heading else []
        parts.append(grid(frame))
    return "\n\n".join([*parts, *table.notes]) + "\n"


def latex(table: Table) -> str:
    """Format a table in LaTeX, each frame as an environment. It needs the package booktabs and an encoding as T1."""
    parts = []
    for heading, frame in table.wide.items():
        caption = f"{table.caption} {heading}." if heading else table.caption
        label = "-".join(["tab:" + table.name, *heading.lower().split()[:1]])
        text = _escaped(frame, escape.latex)
        parts.append(text.to_latex(index=False, escape=False, caption=escape.latex(caption), label=label))
    return "\n".join(parts)


def _escaped(frame: pd.DataFrame, escape_text: Callable[[str], str]) -> pd.DataFrame:
    return frame.astype(str).map(escape_text).set_axis([escape_text(str(name)) for name in frame.columns], axis=1)


def save(table: Table, folder: Path, tex: Path) -> None:
    """Write <name>.md and <name>.csv into `folder`, and <name>.tex into the folder `tex`."""
    for place in (folder, tex):
        place.mkdir(parents=True, exist_ok=True)
    table.tidy.to_csv(folder / f"{table.name}.csv", index=False, float_format="%.6g", lineterminator="\n")
    for path, text in ((folder / f"{table.name}.md", markdown(table)), (tex / f"{table.name}.tex", latex(table))):
        path.write_text(text, encoding="utf-8", newline="\n")
