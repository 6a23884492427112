"""Draw the control nets' accuracy under FGSM by its radius, one panel per data set and attacker."""

from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes

from sparring.mask_padding import NEITHER, TRANSFER, WHITEBOX
from sparring.params.masking import RESEEDED, UNDEFENDED
from sparring.params.names import CLEAN
from sparring.report.figure import canvas, line_look, shared_legend
from sparring.report.masking_facts import NET, Facts
from sparring.report.masking_tables import CW_TRAINING, DATASETS, MASKS, PADDING, title_of

NAME = "mask_padding_curve"
DEFENCES = (UNDEFENDED, RESEEDED, f"{MASKS}20", PADDING, CW_TRAINING, "fgsm_training", "pgd_training")
MARKERS = "osD^v<>"


def curve(facts: Facts) -> pd.DataFrame:
    """Return the accuracies of those control nets whose defence is one of DEFENCES, as far as they were measured.

    Columns: dataset, network, defence, attacker, level (of 255; 0 is clean), accuracy, ci_low, ci_high, images, sd,
    balanced_accuracy.
    """
    measured = facts.measured.reset_index()
    controls = [(name, net) for name in facts.measured_datasets for net in facts.study.datasets[name].controls]
    parts = []
    for attacker in (TRANSFER, WHITEBOX):
        for level in (0, *facts.study.curve):
            attack, by = (f"fgsm_{level}", attacker) if level else (CLEAN, NEITHER)
            rows = measured[(measured["attack"] == attack) & (measured["attacker"] == by)]
            parts.append(rows.assign(attacker=attacker, level=level))
    rows = pd.concat(parts)
    keys = pd.Series(list(zip(rows["dataset"], rows["network"], strict=True)), index=rows.index, dtype=object)
    rows = rows[keys.isin(controls) & rows["defence"].isin(DEFENCES)]
    rows = rows.sort_values("defence", key=lambda names: names.map(DEFENCES.index), kind="stable")
    columns = ["level", "accuracy", "ci_low", "ci_high", "images", "sd", "balanced_accuracy"]
    return rows.sort_values("dataset", key=lambda names: names.map(list(facts.study.datasets).index), kind="stable")[
        [*NET, "attacker", *columns]
    ].reset_index(drop=True)


def draw(facts: Facts, numbers: pd.DataFrame, folder: Path) -> None:
    """Draw the figure and save it in a report's folder; it is an empty panel where nothing was measured.

    numbers: from `curve`.
    """
    nets = list(dict.fromkeys(zip(numbers["dataset"], numbers["network"], strict=True))) or [("", "")]
    titles = [f"{title_of(DATASETS, dataset)}, {network}" if dataset else "no rows yet" for dataset, network in nets]
    with canvas(folder, NAME, 1.2 + 3.4 * len(nets), 5.6, [*titles, *DEFENCES], picture=True) as figure:
        panels = figure.subplots(2, len(nets), sharex=True, sharey=True, squeeze=False)
        for row, attacker in enumerate((TRANSFER, WHITEBOX)):
            for column, net in enumerate(nets):
                rows = numbers[
                    (numbers["dataset"] == net[0]) & (numbers["network"] == net[1]) & (numbers["attacker"] == attacker)
                ]
                _draw_panel(panels[row, column], rows, [0, *facts.study.curve])
                panels[row, column].set_title(f"{titles[column]}: {attacker}", fontsize=9)
        for axes in panels[:, 0]:
            axes.set_ylabel("accuracy")
        for axes in panels[-1]:
            axes.set_xlabel("radius of FGSM, levels of 255")
        shared_legend(figure, 4)


def _draw_panel(axes: Axes, rows: pd.DataFrame, levels: list[int]) -> None:
    """Draw one line per defence. Radii are spaced evenly, as they double."""
    for number, defence in enumerate(DEFENCES):
        line = rows[rows["defence"] == defence]
        if len(line):
            places = [levels.index(level) for level in line["level"]]
            look = line_look(number) | {"marker": MARKERS[number], "markersize": 4, "linewidth": 1.3}
            axes.plot(places, line["accuracy"].to_numpy(float), label=defence, **look)
    axes.set_xticks(range(len(levels)), [str(level) for level in levels])
    axes.set_ylim(-0.02, 1.02)
