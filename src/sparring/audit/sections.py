"""The sections of an audit's page: tables, figures and sentences, from its numbers."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sparring import statistics, store
from sparring.audit import verdict as words
from sparring.audit.facts import Facts, mean_under_corruptions
from sparring.audit.run import Picture
from sparring.audit.verdict import Verdict
from sparring.params.attacks import FEWEST_CLASSES
from sparring.params.names import CLEAN
from sparring.report import escape, page
from sparring.report.figure import COLOURS, canvas
from sparring.report.page import Figure, Section, Thumbnails
from sparring.report.table import Table, intervals, number, records

FIGURES = ("fall", "radius", "classes")
SHOWN = 12  # pictures of images that fell first, and as many of images that never fell
TICKS = (0, 4, 8, 16, 32, 64, 128)
MOST_CLASSES = 30  # for which the figure has room


@dataclass(frozen=True)
class PageData:
    """What the page shows beside the numbers.

    command: the command line of the audit.  facts: value by name, for the last section and for JSON.
    data: the data set's name, by which published models are found.  images: (N, S, S, 3).  pictures: broken images, by
    index.
    """

    title: str
    command: str
    facts: dict[str, Any]
    data: str
    images: store.Images
    pictures: dict[int, Picture]


def sections(folder: Path, facts: Facts, verdict: Verdict, page_data: PageData) -> list[Section]:
    """Make the sections of the page in their order, and draw their figures into `folder`."""
    sentences = "\n".join(f"- {sentence}" for sentence in verdict.sentences)
    return [
        Section("Verdict", [sentences, *_published(facts, page_data.data)]),
        Section("Worst case", _worst_case(folder, facts)),
        Section("Accuracy over the size of the change", _curve(folder, facts)),
        Section("Can the figures be trusted?", _checks(facts)),
        Section("By class", _classes(folder, facts)),
        Section("Images", _images(facts, page_data.images, page_data.pictures)),
        Section("Common corruptions", _corruptions(facts)),
        Section("Confidence", _calibration(facts)),
        Section("What was left out, and how it was made", _conditions(facts, page_data)),
    ]


def _published(facts: Facts, data: str) -> list[str | Table | Figure]:
    models = words.published(facts, data)
    if models.empty:
        return []
    accuracy = facts.worst["accuracy"]
    near = (models["robust"] - accuracy).abs().nsmallest(3).index
    rows = models.loc[models.index.isin([*models.index[:3], *near])]
    frame = pd.DataFrame(
        {
            "model": rows["model"],
            "architecture": rows["architecture"],
            "more training data": rows["more_data"].map({0: "no", 1: "yes"}),
            "clean": rows["clean"].map(number),
            "robust": rows["robust"].map(number),
        }
    )
    own_row = {"model": "this model", "architecture": "-", "more training data": "-"}
    own_row |= {"clean": number(facts.clean["accuracy"]), "robust": number(accuracy)}
    frame = pd.concat([pd.DataFrame([own_row]), frame]).sort_values("robust", ascending=False, kind="stable")
    caption = "Beside it, published models: the best three, and the three whose figures are nearest."
    return [Table("published", caption, frame, {"": frame}, [words.SOURCE + "."])]


def _worst_case(folder: Path, facts: Facts) -> list[str | Table | Figure]:
    attacks = facts.attacks
    if attacks.empty:
        return ["No attack was run."]
    _draw_fall(folder, facts)
    wide = pd.DataFrame(
        {
            "attack": attacks["attack"],
            "images attacked": [f"{row.met:,} of {row.of:,}" for row in records(attacks)],
            "fell": attacks["fooled"].map("{:,}".format),
            "accuracy left": attacks["accuracy"].map(number),
            "seconds": attacks["seconds"].map(lambda value: number(value, 0)),
        }
    )
    notes = [
        "Each attack meets the images that all before it left standing, so each row counts what it adds. An image also "
        "falls where an attack of another part of the audit breaks it within the ball; these have no row of their own."
    ]
    if facts.has_gradients and len(facts.classes) < FEWEST_CLASSES:
        notes.append(
            f"APGD-T is not among them: its loss compares {FEWEST_CLASSES} classes, and the model has "
            f"{len(facts.classes)}. So the accuracy is not called AutoAttack's, whatever else ran."
        )
    caption = f"The attacks within {words.threat_model(facts)}, in the order in which they ran."
    return [
        Table("attacks", caption, attacks, {"": wide}, notes),
        Figure("fall", "Accuracy that each attack left, with 95 % intervals."),
    ]


def _draw_fall(folder: Path, facts: Facts) -> None:
    names = ["clean", *facts.attacks["attack"]]
    values = [facts.clean["accuracy"], *facts.attacks["accuracy"]]
    ends = np.array([statistics.wilson(round(value * len(facts.images)), len(facts.images)) for value in values])
    with canvas(folder, "fall", 7.2, 0.6 + 0.34 * len(names), picture=True) as figure:
        axes = figure.subplots()
        place = np.arange(len(names))[::-1]
        errors = np.clip([values - ends[:, 0], ends[:, 1] - values], 0, None)
        colours = [COLOURS[2], *[COLOURS[0]] * (len(names) - 1)]
        axes.barh(place, values, xerr=errors, color=colours, error_kw={"elinewidth": 0.9, "capsize": 2})
        axes.set_yticks(place, names)
        axes.set_xlim(0, 1)
        axes.set_xlabel("accuracy")
        axes.grid(axis="y", visible=False)


def _curve(folder: Path, facts: Facts) -> list[str | Table | Figure]:
    panels = [("L∞ radius, in 1/255" if facts.norm == "linf" else "L2 radius", facts.curve)]
    if facts.norm == "linf":
        panels.append(("L2 length of the change", facts.lengths))
    panels = [(label, points) for label, points in panels if len(points)]
    if not panels:
        return ["Nothing was measured, as the time did not allow it or the model has no gradient."]
    with canvas(folder, "radius", 3.9 * len(panels) + 0.6, 3.4, picture=True) as figure:
        row = np.ravel(figure.subplots(1, len(panels), sharey=True, squeeze=False))
        for panel_number, (axes, (label, points)) in enumerate(zip(row, panels, strict=True)):
            levels = label.startswith("L∞")
            x = points["eps"] * (255 if levels else 1)
            style = {"color": COLOURS[panel_number], "marker": "o" if levels else None, "ms": 3}
            axes.fill_between(x, points["ci_low"], points["ci_high"], color=COLOURS[panel_number], alpha=0.15, lw=0)
            axes.plot(x, points["accuracy"], **style)
            if levels:
                axes.set_xscale("symlog", linthresh=8, base=2)
                axes.set_xticks(TICKS, [str(tick) for tick in TICKS])
                axes.axvline(255 * facts.eps, color="#888888", lw=0.8, ls=":")
            elif facts.norm == "l2":
                axes.axvline(facts.eps, color="#888888", lw=0.8, ls=":")
            axes.set_xlabel(label)
            axes.set_ylim(0, 1)
        row[0].set_ylabel("accuracy")
    caption = (
        "Accuracy over the size of the change, on a subset of the images, with 95 % intervals. It has to end at zero. "
        "Dotted: the radius of the worst case."
    )
    return [_least(facts), Figure("radius", caption)]


def _least(facts: Facts) -> str:
    """Return sentences on the median least change."""
    parts = []
    if not math.isnan(facts.median_length):
        count = int((facts.images["measured"] & facts.images["correct"]).sum())
        length = "no length that was found" if math.isinf(facts.median_length) else f"{facts.median_length:.3g}"
        parts.append(
            f"Half of the images fall to an L2 change of length {length} or less ({count} images; DDN and C&W)."
        )
    if facts.norm == "linf" and not math.isnan(facts.median_least):
        count = int((facts.images["on_curve"] & facts.images["correct"]).sum())
        level = "no radius up to 128" if math.isinf(facts.median_least) else f"{255 * facts.median_least:.3g}"
        parts.append(f"Half of them fall to an L∞ change of {level}/255 or less ({count} images; PGD at these radii).")
    return " ".join(parts) or "No least change was found."


def _checks(facts: Facts) -> list[str | Table | Figure]:
    if facts.checks.empty:
        return ["No sanity check was made: the time did not allow it, or the model has no gradient."]
    passed = {True: "passed", False: "failed", None: "-"}
    checks = facts.checks.astype(object).where(facts.checks.notna(), None)
    wide = pd.DataFrame(
        {
            "check": checks["check"],
            "compared": checks["compared"],
            "accuracies": [
                number(row.accuracy) + ("" if row.against is None else f", {number(row.against)}")
                for row in records(checks)
            ],
            "images": [str(count) for count in checks["images"]],
            "verdict": [passed[row.passed] for row in records(checks)],
        }
    )
    notes = [
        "Each compares two accuracies on the same images and fails where the 95 % interval of their difference lies "
        "wholly on the wrong side; the last has no interval. Few images make wide intervals, so a pass on few images "
        "says little (Carlini et al., 2019, arXiv 1902.06705)."
    ]
    return [Table("checks", "Sanity checks of the attacks.", facts.checks, {"": wide}, notes)]


def _classes(folder: Path, facts: Facts) -> list[str | Table | Figure]:
    table = facts.by_class
    wide = pd.DataFrame(
        {
            "class": table["class"],
            "worst case": intervals(table, "standing", "ci_low", "ci_high"),
            "clean": table["clean"].map(number),
            "images": table["images"].map("{:,}".format),
        }
    )
    worst = table.head(MOST_CLASSES)
    with canvas(folder, "classes", 7.2, 0.7 + 0.26 * len(worst), table["class"], picture=True) as figure:
        axes = figure.subplots()
        place = np.arange(len(worst))[::-1]
        axes.barh(place, worst["clean"], color=COLOURS[4], label="clean")
        axes.barh(place, worst["standing"], color=COLOURS[0], label="worst case")
        axes.set_yticks(place, [str(name)[:24] for name in worst["class"]])
        axes.set_xlim(0, 1)
        axes.set_xlabel("accuracy")
        axes.grid(axis="y", visible=False)
        figure.legend(loc="outside lower center", ncols=2)
    left = f", of {len(table)} the {MOST_CLASSES} worst" if len(table) > len(worst) else ""
    return [
        Figure("classes", f"Accuracy by class, the worst first{left}."),
        Table("classes", "Accuracy by class, the worst first.", table, {"": wide}),
    ]


def _images(facts: Facts, images: store.Images, pictures: dict[int, Picture]) -> list[str | Table | Figure]:
    """Return pictures of the images that were easiest to break, and of images that no attack broke."""
    by_index = {int(row.index_): row for row in records(facts.images.rename(columns={"index": "index_"}))}
    place = {int(index): number_ for number_, index in enumerate(images.index)}
    by_ease = sorted(pictures, key=lambda index: (min(by_index[index].least, facts.eps), by_index[index].confidence))
    fallen = by_ease[:SHOWN]
    rows: dict[str, list[tuple[str, str]]] = {}
    if fallen:
        rows["The first to fall, as attacked"] = [
            (page.png(pictures[index].image), _fallen_caption(facts, by_index[index].label, pictures[index]))
            for index in fallen
        ]
        rows["The same images, clean"] = [
            _clean_thumbnail(facts, by_index[index], images, place[index]) for index in fallen
        ]
    standing = facts.images[facts.images["standing"]].sort_values("attacked_confidence", ascending=False, kind="stable")
    if len(standing):
        rows["Never fell, the surest first"] = [
            _clean_thumbnail(facts, by_index[index], images, place[index]) for index in standing["index"].head(SHOWN)
        ]
    if not rows:
        return ["No image is right when clean."]
    caption = "Images that fell to the least change or the first attack, and images that no attack broke."
    return [Thumbnails("images", caption, True, rows)]


def _fallen_caption(facts: Facts, label: int, picture: Picture) -> str:
    return f"{facts.classes[label]} → {facts.classes[picture.prediction]}\n{picture.attack}"


def _clean_thumbnail(facts: Facts, row: Any, images: store.Images, place: int) -> tuple[str, str]:
    return page.png(images.image[place]), f"{facts.classes[row.label]}\nsure by {row.confidence:.2f}"


def _corruptions(facts: Facts) -> list[str | Table | Figure]:
    table = facts.corruptions
    if table.empty:
        return ["They were left out, as the time did not allow them."]
    clean = table[table["corruption"] == CLEAN].iloc[0]
    rows = table[table["corruption"] != CLEAN]
    wide = rows.pivot(index="corruption", columns="strength", values="accuracy").map(number)
    wide = wide.reindex(list(dict.fromkeys(rows["corruption"])))
    wide.columns = [f"strength {strength}" for strength in wide.columns]
    caption = (
        f"Accuracy under common corruptions: {number(mean_under_corruptions(table))} in the mean, clean "
        f"{number(float(clean['accuracy']))}, {int(clean['images']):,} images."
    )
    note = (
        "Six kinds in the manner of Hendrycks and Dietterich (2019, arXiv 1903.12261), not their benchmark: these are "
        "not the figures of CIFAR-10-C or ImageNet-C."
    )
    return [Table("corruptions", caption, table, {"": wide.reset_index()}, [note])]


def _calibration(facts: Facts) -> list[str | Table | Figure]:
    calibration = facts.calibration
    frame = pd.DataFrame(
        {
            "images": ["clean", "worst case"],
            "mean confidence": [number(calibration["confidence"]), number(calibration["attacked_confidence"])],
            "accuracy": [number(facts.clean["accuracy"]), number(facts.worst["accuracy"])],
            "calibration error": [number(calibration["clean"]), number(calibration["attacked"])],
        }
    )
    note = (
        "Expected calibration error in 15 bins (Guo et al., 2017, arXiv 1706.04599): by how much confidence differs "
        "from the share that is right. Worst case: each image as the attack that broke it left it, or as the last "
        "attack on it did."
    )
    return [Table("calibration", "How sure the model is, and how often right.", frame, {"": frame}, [note])]


def _conditions(facts: Facts, page_data: PageData) -> list[str | Table | Figure]:
    parts: list[str | Table | Figure] = []
    if facts.left_out:
        lines = [f"- {escape.markdown(what)}: {why}." for what, why in facts.left_out.items()]
        parts.append("Left out, or not finished:\n\n" + "\n".join(lines))
    else:
        parts.append("Nothing was left out.")
    frame = pd.DataFrame({"": list(page_data.facts), "value": [str(value) for value in page_data.facts.values()]})
    parts.append(Table("made", "How the audit was made.", frame, {"": frame}))
    parts.append(f"`{page_data.command}`")
    parts.append(
        "What an audit cannot tell: docs/audit.md has the list. Attacks that know the model's inner workings (adaptive "
        "attacks) may break more, and so may changes of other kinds than this ball."
    )
    return parts
