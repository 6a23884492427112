"""Make the section on the attacks: a gallery of images, settings and effect on the pretrained net (Table 1)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from sparring import store
from sparring.params.attacks import Attack
from sparring.params.names import CLEAN, EVALUATED_SPLITS
from sparring.report import page, paper, read
from sparring.report.figure import attack_titles, bars, canvas, error_bars, title_lines
from sparring.report.lettering import short
from sparring.report.page import Figure, Gallery, Section
from sparring.report.results import Results
from sparring.report.table import (
    INTERVALS,
    SPLIT_TITLES,
    Table,
    attack_title,
    levels,
    number,
    records,
    with_interval,
)

GALLERY_ROWS = 10
GALLERY_BYTES = 4_000_000  # of pixels that the web page's gallery may hold: fewer images where they are large
MAGNIFICATIONS = (1, 2, 5, 10, 20, 50, 100)


@dataclass(frozen=True)
class Example:
    """Hold a column of the gallery: (R, H, W, 3) images as stored, in levels, and the source model's answers."""

    title: str
    image: np.ndarray
    prediction: list[str]


def section(results: Results, table: Table, folder: Path) -> Section:
    """Make the section: the gallery of test images, Table 1, and a figure of success rates.  table: from `table`."""
    test = table.tidy[table.tidy["split"] == "test"]
    if not test["images"].any():
        return Section("The attacks", [table])
    titles = attack_titles(results.params)
    draw_success(folder, test, {name: titles[name] for name in results.attacks})
    caption = "How often each attack fools the pretrained net, of the test images that it gets right when clean."
    return Section("The attacks", [_gallery(results, folder, titles), table, Figure("success", caption)])


def summary(results: Results, timings: Sequence[dict[str, Any]], split: str) -> dict[str, Any]:
    """Return what each attack does to the pretrained net, and its images per second.  timings: from `read.timings`."""
    rates = {
        timing["stage"].partition("@")[2]: timing.get("images_per_second")
        for timing in timings
        if timing["stage"].startswith(("attack@", "attack_unseen@"))
    }
    facts = results.attack_facts[results.attack_facts["split"] == split].set_index("attack")
    columns = ["success", "success_float", "success_rounded", "l2_median", "linf_max", "unchanged", "images"]
    return {
        "attacks": {
            name: {**fact, "images_per_second": rates.get(str(name))}
            for name, fact in facts[columns].to_dict("index").items()
        }
    }


def table(results: Results) -> Table:
    """Return Table 1: what each attack is set to, and what it does to the source model."""
    params, tidy = results.params, results.attack_facts.copy()
    attacks = {**params.attacks, **params.unseen_attacks}
    tidy.insert(2, "seen", tidy["attack"].isin(list(params.attacks)))
    tidy.insert(3, "method", [attacks[name].method for name in tidy["attack"]])
    tidy.insert(4, "parameters", [_arguments(attacks[name]) for name in tidy["attack"]])
    tidy.insert(5, "eps_stored", [levels(attacks[name].linf) for name in tidy["attack"]])
    tidy["paper"] = tidy["attack"].map(paper.intensity())
    return Table(
        "table1",
        "The attacks: how they are set, and what they do to the pretrained net (white-box).",
        tidy,
        {
            SPLIT_TITLES[split]: pd.DataFrame(
                [
                    {
                        "attack": attack_title(params, row.attack),
                        "parameters": row.parameters,
                        "eps as stored": row.eps_stored or "-",
                        "median L2": number(row.l2_median),
                        "max Linf": levels(row.linf_max) or "-",
                        "success as floats": number(row.success_float),
                        "rounded": number(row.success_rounded),
                        "as stored": with_interval(row.success, row.ci_low, row.ci_high),
                        "unchanged": f"{row.unchanged:.0f} of {row.images:.0f}",
                        "paper's intensity": "-" if math.isnan(row.paper) else f"{row.paper:g}",
                    }
                    for row in records(tidy[tidy["split"] == split])
                ]
            )
            for split in EVALUATED_SPLITS
        },
        [
            "`success`: of the images that the pretrained net classifies correctly when clean, the share that it "
            "classifies wrongly: as the attack left them (floats), after mere rounding to 8 bits, and as stored. "
            "Minimal-norm attacks end right behind the boundary, so rounding undoes many; they are stored with the "
            "least change that still fools the net after rounding, unless `store.faithful` is false. Of all others "
            "the three are one but for rounding, so only the images as stored are shown to the net (`-`). " + INTERVALS,
            "`eps as stored`: the largest change of a pixel after rounding, floor(255 eps + 0.001)/255; two settings "
            "with the same value are the same radius. L2 and Linf are measured over all images of the split, with "
            "pixels in [0, 1]. `unchanged`: images that the attack left as they were; a detector is not expected to "
            "find them.",
            "The paper's intensity is the number that its Table 1 prints. It counts in the units of the authors' code, "
            "so it is no radius in pixels and not comparable from one attack to another.",
        ],
    )


def _arguments(attack: Attack) -> str:
    """Write an attack's settings in words, as params.yaml has them."""
    return ", ".join(f"{name} {value}" for name, value in attack.arguments.items()) or "none"


def _gallery(results: Results, folder: Path, titles: dict[str, str]) -> Gallery:
    """Make the gallery with one test image per class: the first that the pretrained net gets right, else the first."""
    source = results.source_clean[results.source_clean["split"] == "test"].drop_duplicates("index")
    examples = source.sort_values(["label", "correct", "index"], ascending=[True, False, True])
    examples = examples.drop_duplicates("label").head(GALLERY_ROWS)
    clean = read.images(results.params, results.layout, "test", CLEAN, ("image",))
    place = pd.Series(np.arange(len(clean)), index=clean.index)
    rows = place.loc[examples["index"]].to_numpy()

    def example(name: str, images: np.ndarray, prediction: np.ndarray) -> Example:
        """Make a column of the gallery from levels (R, H, W, 3) and the numbers of the predicted classes (R,)."""
        return Example(titles[name], images, [results.classes[label] for label in prediction])

    stored = {
        name: read.images(results.params, results.layout, "test", name, ("image", "prediction", "l2", "linf"))[rows]
        for name in results.attacks
    }
    attacked = [example(name, images.image, images.columns["prediction"]) for name, images in stored.items()]
    names = [results.classes[label] for label in examples["label"]]
    original = example(CLEAN, clean.image[rows], examples["prediction"].to_numpy())
    draw_gallery(folder, names, original, attacked)
    pixels = int(np.prod(clean.metadata["shape"])) * (1 + 2 * len(stored))
    return Gallery(
        "gallery",
        "A test image of each class, clean and under each attack, each with what the attack changed.",
        attacks=[attack_title(results.params, name) for name in stored],
        images=_gallery_images(results, clean[rows][: max(1, GALLERY_BYTES // pixels)], stored),
    )


def _gallery_images(results: Results, clean: store.Images, stored: dict[str, store.Images]) -> list[dict[str, Any]]:
    """Return what `Gallery` holds of each image. Answers are those of a structure's first training."""
    predictions = results.predictions[results.predictions["split"] == "test"]
    rows = predictions[predictions["index"].isin(clean.index)].drop_duplicates(["structure", "attack", "index"])
    answers = {
        (row.structure, row.attack, row.Index): {
            "taken": results.classes[row.prediction],
            "text": f"{page.isolated(results.classes[row.prediction])}, {row.confidence:.0%}",
        }
        for row in records(rows.set_axis(rows["index"]).drop(columns="index"))
    }
    changes = {name: images.image[: len(clean)].astype(float) - clean.image for name, images in stored.items()}
    factors = {name: _magnification(change / 255) for name, change in changes.items()}

    def by_structure(attack: str, index: int) -> dict[str, dict[str, str]]:
        return {name: answers[(name, attack, index)] for name in results.structures}

    return [
        {
            "label": results.classes[clean.label[row]],
            "clean": page.png(clean.image[row]),
            "said": by_structure(CLEAN, index),
            "attacked": [
                {
                    "image": page.png(images.image[row]),
                    "change": page.png(127.5 + factors[name] * changes[name][row]),
                    "note": f"×{factors[name]}, grey is none; L2 {images.columns['l2'][row]:.2f}, "
                    f"largest {255 * images.columns['linf'][row]:.0f}/255",
                    "said": by_structure(name, index),
                }
                for name, images in stored.items()
            ],
        }
        for row, index in enumerate(clean.index)
    ]


def _magnification(change: np.ndarray) -> int:
    """Return the largest of MAGNIFICATIONS at which all but 5 % of a change's values fit between black and white.

    change: in [0, 1] units; 0 is shown as grey.
    """
    largest = float(np.quantile(np.abs(change), 0.95)) if change.size else 0.0
    return max([factor for factor in MAGNIFICATIONS if factor * largest <= 0.5], default=1)


def draw_gallery(folder: Path, names: Sequence[str], clean: Example, attacked: Sequence[Example]) -> None:
    """Draw one row per image: clean, then under each attack with its magnified change to the right.

    names: the classes of the R images.
    """
    columns, count = 1 + 2 * len(attacked), len(names)
    texts = [short(name) for example in (clean, *attacked) for name in (*names, *example.prediction)]
    with canvas(folder, "gallery", 0.82 * columns + 1.1, 0.85 * count + 0.9, texts) as figure:
        axes = figure.subplots()  # a single one for all pictures: an axes for each takes ten times as long
        axes.set_xticks([])
        axes.set_yticks(np.arange(count) + 0.41, [short(name) for name in names])
        axes.tick_params(length=0)
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        _draw_column(axes, 0, clean.title, clean.image / 255)
        _write_answers(axes, 0, clean, names)
        for number, example in enumerate(attacked):
            change = (example.image.astype(float) - clean.image.astype(float)) / 255
            factor = _magnification(change)
            _draw_column(axes, 2 * number + 1, example.title, example.image.astype(float) / 255)
            _write_answers(axes, 2 * number + 1, example, names)
            _draw_column(axes, 2 * number + 2, f"change ×{factor}", np.clip(0.5 + factor * change, 0, 1), "#555555")
        axes.set(xlim=(0, columns), ylim=(count, 0))  # imshow narrows both to the last picture
        figure.supxlabel(
            "Below each image: what the pretrained net takes it for, in bold where wrong. Change: grey is none.",
            fontsize=8,
        )


def _draw_column(axes: Axes, left: int, title: str, pictures: np.ndarray, colour: str = "black") -> None:
    axes.text(left + 0.46, -0.06, title_lines(title), fontsize=8, ha="center", va="bottom", color=colour)
    for row, picture in enumerate(pictures):
        box = (left + 0.05, left + 0.87, row + 0.82, row)
        axes.imshow(picture, interpolation="none", extent=box, aspect="equal")  # SVG: the pixels as they are


def _write_answers(axes: Axes, left: int, example: Example, names: Sequence[str]) -> None:
    for row, (prediction, name) in enumerate(zip(example.prediction, names, strict=True)):
        weight = "normal" if prediction == name else "bold"
        axes.text(left + 0.46, row + 0.83, short(prediction), fontsize=7, ha="center", va="top", weight=weight)


def draw_success(folder: Path, table: pd.DataFrame, titles: dict[str, str]) -> None:
    """Draw how often each attack fools the source model: as floats, rounded, and as stored with 95 % intervals.

    table: columns attack, success, ci_low, ci_high, success_float, success_rounded, of one split.  titles: attack →
    what to write below.
    """
    rows = table.set_index("attack").loc[list(titles)]
    columns = {"as the attack left them": "success_float", "rounded": "success_rounded", "as stored": "success"}
    with canvas(folder, "success", max(6.5, 1.2 * len(titles)), 3.4) as figure:
        axes = figure.subplots()
        for number, (title, column) in enumerate(columns.items()):
            left = np.arange(len(titles)) + (number - 1) * 0.27
            bars(
                axes, number, left, rows[column], error_bars(rows, column) if column == "success" else None, 0.25, title
            )
        axes.set_xticks(np.arange(len(titles)), [title_lines(title) for title in titles.values()])
        axes.set(ylabel="success", ylim=(0, 1.02), title="Success on the pretrained net, test images")
        axes.grid(visible=False, axis="x")
        figure.legend(loc="outside lower center", ncols=3)
