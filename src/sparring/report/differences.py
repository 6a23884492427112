"""Differences between structures: how they are written, and what may be said of them."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from sparring import statistics
from sparring.params import Params
from sparring.params.names import EVALUATED_SPLITS, MIXTURE
from sparring.report import escape
from sparring.report.table import SPLIT_TITLES, Table, attack_title, intervals, number

DIFFERENCE = ("difference", "difference_low", "difference_high", "difference_sd")
ASSUMED_SPREAD = (
    "With one training of each structure, how far trainings lie apart is unknown. It is taken from the three trainings "
    "of the profile `cifar_small`, where the difference between two structures on the mixture had a standard deviation "
    f"of {statistics.SPREAD:.3f} (docs/results/cifar_small/seeds.md). Other data and nets may have less or more; "
    "several `seeds` in params.yaml measure it."
)


def signed(value: float, *interval: float) -> str:
    """Format a difference, as in `+0.169`, or with its interval, as in `+0.205 [+0.161, +0.247]`; `-` for nan."""
    ends = f" [{', '.join(f'{end:+.3f}' for end in interval)}]" if interval else ""
    return "-" if math.isnan(value) else f"{value:+.3f}{ends}"


def signed_row(compared: Mapping[Any, Any]) -> str:
    """Format the difference and its interval in a row of statistics.comparisons, as `signed` does."""
    return signed(*(compared[name] for name in ("difference", "difference_low", "difference_high")))


def probability(p: float) -> str:
    """Format a p-value, as in `0.035` and `<0.001`."""
    return "<0.001" if p < 0.0005 else number(p)


def starred(text: str, side: float) -> str:
    """Add a star to a difference, or to its p-value, where the difference is beyond chance (side 1 or -1)."""
    return f"{text} *" if side in (1, -1) else text


def starred_intervals(frame: pd.DataFrame, name: str) -> list[str]:
    """Format the differences in the column `name` with their intervals, and with stars as `starred`."""
    texts = intervals(frame, name, f"{name}_low", f"{name}_high", f"{name}_sd")
    return [starred(text, side) for text, side in zip(texts, frame[f"{name}_side"], strict=True)]


def trainings_of(compared: pd.DataFrame) -> int:
    """Return how many trainings of a structure the differences are from; 1 where nothing is compared."""
    counts = compared["trainings"].dropna()
    return int(counts.max()) if len(counts) else 1


def scope(trainings: int) -> str:
    """Return the words before a verdict that limit it to one training; none where there were several trainings."""
    return "in this one training " if trainings == 1 else ""


def capitalised(text: str) -> str:
    """Return the text with a capital at its start, as a sentence that begins with `scope` needs it."""
    return text[:1].upper() + text[1:]


def differences_note(count: int) -> str:
    """Return the note that says what the intervals of differences hold for.  count: from `trainings_of`."""
    if count == 1:
        return (
            "Differences are paired, image by image; their 95 % interval is Bonett and Price's, over images alone: it "
            "tells nothing of another training."
        )
    return (
        f"Differences are paired, image by image and seed by seed; their 95 % interval holds for other trainings and "
        f"other images: the half-widths of Student's t-interval over the {count} trainings and of Bonett and Price's "
        "over images, added in squares. There is one pretrained net, and no interval holds for another. *Within ±1 "
        "point* is said where all of the interval lies there."
    )


def chance_note(count: int) -> str:
    """Return the note that says what `beyond chance` means.  count: from `trainings_of`."""
    if count > 1:
        return "*Beyond chance*: the 95 % interval of the difference, over trainings and images, does not contain zero."
    return "*Beyond chance*: more than other images and another training would make together. " + ASSUMED_SPREAD


def seeds_note(predictions: pd.DataFrame) -> list[str]:
    """Return a note, in a list, on how often each structure was trained; none where all were trained once."""
    seeds = predictions.groupby("structure")["seed"].nunique()
    several = [f"{escape.markdown(str(name))} {count}" for name, count in seeds.items() if count > 1]
    if not several:
        return []
    return [
        f"Trained more than once: {', '.join(several)}. Figures are then means over the trainings, ± their standard "
        "deviation; an accuracy's interval in brackets counts each image once and does not contain that deviation."
    ]


def mcnemar(params: Params, name: str, compared: pd.DataFrame, splits: Sequence[str] = EVALUATED_SPLITS) -> list[Table]:
    """Return, in a list, the table of McNemar's exact test between any two structures; none if nothing is compared.

    name: the table's.  compared: from statistics.comparisons by split and attack; a column per attack.
    """
    if compared.empty:
        return []
    pairs = [(later, first) for first, later in itertools.combinations(params.structures, 2)]
    attacks = list(dict.fromkeys(compared.index.get_level_values("attack")))
    index = [(*key, *pair) for key in itertools.product(splits, attacks) for pair in pairs]
    names = ["split", "attack", "structure", "other"]
    tidy = compared.reindex(pd.MultiIndex.from_tuples(index, names=names)).reset_index()
    counts = ["more", "less", "images", "side", "equivalent", "trainings"]
    tidy = tidy.fillna(dict.fromkeys(counts, 0)).astype(dict.fromkeys(counts, "int64"))
    wide, tests = {}, 0
    for split in splits:
        of_split = tidy[tidy["split"] == split]
        tests = max(tests, int(of_split["p"].notna().sum()))
        by_pair = of_split.set_index(["attack", "structure", "other"]).to_dict("index")
        columns = {"structures": [f"{structure}, {other}" for structure, other in pairs]}
        for attack in attacks:
            cells = [by_pair[(attack, *pair)] for pair in pairs]
            columns[attack if attack == MIXTURE else attack_title(params, attack)] = [
                starred(f"{probability(cell['p'])} ({cell['more']} : {cell['less']})", cell["side"])
                if cell["images"]
                else "-"
                for cell in cells
            ]
        wide[SPLIT_TITLES[split]] = pd.DataFrame(columns)
    if attacks == [MIXTURE]:
        both = [frame.rename(columns={MIXTURE: title.lower()}) for title, frame in wide.items()]
        wide = {"": both[0].join(both[1].drop(columns="structures"))}
    caption = "McNemar's exact test between any two structures on the same images."
    return [Table(name, caption, tidy, wide, _mcnemar_notes(trainings_of(compared), tests))]


def _mcnemar_notes(count: int, tests: int) -> list[str]:
    bonferroni = (
        f" These are {tests} tests for the same images: one in twenty falls below 0.05 by chance, and one that is "
        f"below {0.05 / tests:.2g} counts for these nets whatever the others say (Bonferroni)."
    )
    return [
        "p, and in brackets how many images only the first structure gets right : only the second (of several "
        "trainings: the one in a larger share of its trainings than the other). p is how probable a split at least as "
        "uneven is where neither is better. It counts images alone, so it is about these very nets: two trainings of "
        "one structure can have a small p too." + (bonferroni if tests > 1 else ""),
        f"`*`: the accuracies differ beyond chance. {chance_note(count)}"
        + (f" {differences_note(count)} The .csv has them." if count > 1 else ""),
    ]
