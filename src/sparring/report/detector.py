"""Make the section on the detector: verdicts in words, the mixture, the tables of detection.py, and the ROC curves."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from sparring import statistics
from sparring.report import escape, paper
from sparring.report.detection import METHOD_TITLES, Scores
from sparring.report.figure import COLOURS, DASHES, LONGEST, attack_titles, canvas, line_look, title_lines
from sparring.report.lettering import short
from sparring.report.page import Figure, Section
from sparring.report.results import Results
from sparring.report.table import ACCURACY, INTERVALS, SPLIT_TITLES, Table, number, plain, with_interval

TITLE = "The detector"


def section(results: Results, scores: Scores | None, tables: Sequence[Table], folder: Path) -> Section:
    """Make the section: verdicts in words, the mixture, then single attacks.  scores, tables: from `detection`."""
    if not results.detectors:
        return Section(TITLE, ["No structure here has a detector."])
    settings = results.params.detector
    parts: list[str | Table | Figure] = [
        f"The detector ({settings.input} input, {settings.layers} layers) looks at the pretrained net's feature maps "
        "and says whether the image was attacked. Below: how it does on the mixture, as in the paper; on each attack "
        "alone, beside two known detectors; on images that something harmless has changed; and against an attacker "
        "who knows of it, which is what tells its worth as a defence.",
        *([results.why_left_out("detect")] if "detect" in results.left_out else []),
        *(_verdicts(results, tables[0].tidy, tables[-1].tidy) if tables else []),
        _mixture_table(results),
    ]
    roc_lines = {}
    for name in results.detectors:
        rows = results.mixture[(results.mixture["structure"] == name) & (results.mixture["split"] == "test")]
        if rows["adversarial"].nunique() == 2:
            adversarial, score = rows["adversarial"].to_numpy(bool), rows["detector_score"].to_numpy(float)
            auroc = statistics.detector_metrics(adversarial, score)["auroc"]
            roc_lines[name] = (*statistics.roc(adversarial, score), number(auroc))
    if roc_lines:
        draw_detector_roc(folder, roc_lines)
        note = ", all trainings together" if len(results.params.seeds) > 1 else ""
        caption = f"The mixture of test images: what the detector finds against what it wrongly accuses{note}."
        parts.append(Figure("detector_roc", caption))
    if scores is None:
        return Section(TITLE, parts)
    return Section(TITLE, [*parts, tables[0], *_attack_curves(scores, folder), *tables[1:]])


def summary(results: Results, tables: Sequence[Table], split: str) -> dict[str, Any]:
    """Return the detectors' numbers on the mixture and, where there are tables, by attack and by attacker.

    tables: from `detection.tables`.
    """
    tree: dict[str, Any] = {
        "detector": {
            name: {key: results.detected[name, split][key] for key in ("accuracy", "auroc", "tpr_at_fpr05")}
            for name in results.detectors
        }
    }
    if not tables:
        return tree
    attacks, joint = (table.tidy[table.tidy["split"] == split] for table in (tables[0], tables[-1]))
    columns = ["auroc", "tpr_05", "tpr_01"]
    return tree | {
        "detection": {
            name: rows.set_index("attack")[columns].to_dict("index")
            for name, rows in attacks.groupby("method", sort=False)
        },
        "joint": {
            name: rows.set_index("attack")["joint"].to_dict() for name, rows in joint.groupby("method", sort=False)
        },
    }


def _verdicts(results: Results, attacks: pd.DataFrame, aimed: pd.DataFrame) -> list[str]:
    """Say for each detector, on test images, its AUROC beside the known ones', and the share that is still classified
    right or accused under attackers who know of it, and under those who do not.

    attacks, aimed: the tidy frames of the first and the last of `detection.tables`.
    """
    auroc = attacks[(attacks["split"] == "test") & (attacks["attack"] == statistics.ALL)].set_index("method")["auroc"]
    joint = aimed[aimed["split"] == "test"].set_index(["method", "attack"])["joint"]
    known = " and ".join(f"{title} {number(auroc[name])}" for name, title in METHOD_TITLES.items())
    return [
        f"On test images, the detector of {escape.markdown(name)} has an AUROC of {number(auroc[name])} over "
        f"{statistics.ALL} ({known}). Of the images attacked by one who sees the classifier alone, a share of "
        f"{number(joint[(name, 'unaware')])} is still classified right or accused; by one who sees the "
        f"detector too, {number(joint[(name, 'adaptive')])}."
        for name in results.detectors
        if not math.isnan(auroc[name])
    ]


def _mixture_table(results: Results) -> Table:
    published, rows = paper.detector(results.params), []
    for (name, split), facts in results.detected.items():
        row = {"structure": name, "images": SPLIT_TITLES[split].lower()}
        row |= {
            "accuracy": with_interval(*(facts[column] for column in ACCURACY)),
            "majority": number(facts["majority"]),
            "AUROC": number(facts["auroc"]),
            "found at 5 % accused": number(facts["tpr_at_fpr05"]),
        }
        rows.append(row | ({} if published is None else {"paper's accuracy": f"{published:.4f}"}))
    note = (
        "An image that its attack left unchanged counts as clean. *Majority* is what always giving the commoner answer "
        "would score; *found at 5 % accused* is the share of adversarial images found when at most 5 % of the clean "
        "ones are accused. "
    )
    return plain("detector", "The detector on the mixture.", pd.DataFrame(rows), [note + INTERVALS])


def _attack_curves(scores: Scores, folder: Path) -> list[Figure]:
    """Draw the ROC of each attack alone, on test images; nothing where there are none."""
    titles = attack_titles(scores.params)
    test = scores.pairs[scores.pairs["split"] == "test"]
    panels = {
        titles.get(str(attack), str(attack)): {
            scores.methods[str(method)]: statistics.roc_of_pairs(rows)
            for method, rows in of_attack.groupby("method", sort=False)
        }
        for attack, of_attack in test.groupby("attack", sort=False)
    }
    if not panels:
        return []
    draw_detector_roc_by_attack(folder, panels)
    caption = "Each attack alone, on the test images that it changed: what detectors find against what they accuse."
    return [Figure("detector_roc_by_attack", caption)]


def draw_detector_roc(folder: Path, lines: dict[str, tuple[np.ndarray, np.ndarray, str]]) -> None:
    """Draw a ROC line for each detector.  lines: its name → (false-positive rates, true-positive rates, area below)."""
    with canvas(folder, "detector_roc", 4.6, 4.6) as figure:
        axes: Axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color="#999999", linestyle=":", linewidth=1, label="chance")
        axes.axvline(0.05, color="#bbbbbb", linewidth=0.8)
        for number, (name, (false, true, area)) in enumerate(lines.items()):
            axes.plot(false, true, label=f"{short(name, LONGEST)} (area {area})", **line_look(number))
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


def draw_detector_roc_by_attack(folder: Path, panels: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]]) -> None:
    """Draw one panel per attack, with a ROC line for each detector.

    panels: title → legend → (false-positive rates, true-positive rates); the same legends in each.
    """
    columns = min(len(panels), 4)
    rows = -(-len(panels) // columns)
    with canvas(folder, "detector_roc_by_attack", 2.3 * columns + 0.3, 2.4 * rows + 0.6) as figure:
        grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
        for axes, (title, lines) in zip(grid, panels.items(), strict=False):
            axes.plot([0, 1], [0, 1], color="#999999", linestyle=":", linewidth=1)
            axes.axvline(0.05, color="#bbbbbb", linewidth=0.8)
            for number, (name, (false, true)) in enumerate(lines.items()):
                look = {"color": COLOURS[number % len(COLOURS)], "linestyle": DASHES[number % len(DASHES)]}
                axes.plot(false, true, label=short(name, LONGEST), **look)
            axes.set(xlim=(0, 1), ylim=(0, 1.01), aspect="equal")
            axes.set_title(title_lines(title, LONGEST), fontsize=9)
        for axes in grid[len(panels) :]:
            axes.remove()
        figure.supxlabel("clean images accused (grey line: 5 %)", fontsize=9)
        figure.supylabel("attacked images found", fontsize=9)
        handles, labels = grid[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
