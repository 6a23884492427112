"""Make the report's last sections: training by epoch, how to read the figures, parameters, times and hardware."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.ticker import MaxNLocator

from sparring.params.names import outputs
from sparring.report import escape
from sparring.report.figure import COLOURS, DASHES, LONGEST, canvas
from sparring.report.lettering import short
from sparring.report.page import Figure, Section
from sparring.report.results import Results
from sparring.report.table import Table, plain
from sparring.training.collapse import COLLAPSE, collapsed_at


def sections(
    results: Results, histories: dict[str, pd.DataFrame], timings: Sequence[dict[str, Any]], folder: Path
) -> list[Section]:
    """Return the report's last sections, and draw the curves of training.  histories, timings: from `read`."""
    draw_curves(folder, histories)
    seeds = len(results.params.seeds)
    caption = "Training, by epoch" + (f"; of the structures the mean of {seeds} seeds." if seeds > 1 else ".")
    return [
        Section("Training", [*_collapse_warnings(histories), Figure("curves", caption)]),
        Section("How to read this", _reading_notes()),
        Section("How it was made", _settings_and_times(results, timings)),
    ]


def _collapse_warnings(histories: dict[str, pd.DataFrame]) -> list[str]:
    """Return a warning for each training that has collapsed; it names the seed where a structure has several."""
    warnings = []
    for name, history in histories.items():
        seeds = list(history["seed"].unique()) if "seed" in history else [None]
        for seed in seeds:
            epochs = history if seed is None else history[history["seed"] == seed]
            epoch = collapsed_at(epochs.to_dict("records"))
            if epoch is not None:
                training = name if seed is None else f"{name}, seed {seed}"
                warnings.append(f"**{escape.markdown(training)}, epoch {epoch}**: {COLLAPSE}.")
    return warnings


def _reading_notes() -> list[str]:
    return [
        "- *Stored*: each attack ran once over each image, and the image it made is kept, rounded to 8 bits and no "
        "further. All structures face the very same images, so they can be compared image by image.\n"
        "- *White-box* and *transfer*: the attacks could see the pretrained net and nothing else. Its figures are "
        "those of a net whose attacker knows everything about it; the other structures only show how well the images "
        "carry over to a net that the attacker has never seen. That is closer to data augmentation than to a worst "
        "case: accuracy against an attacker who aims at the defended model can be expected to be far lower. The "
        "section White-box measures that, and the section on the detector one who aims at both; all other figures show "
        "transfer.\n"
        "- *Test* images are carved from the data set's training images, as in the paper; *held-out* images are its "
        "official test images where it has such, and carved likewise where it has not. Neither were used to choose "
        "anything.",
    ]


def _settings_and_times(results: Results, timings: Sequence[dict[str, Any]]) -> list[str | Table]:
    params = results.params
    parts: list[str | Table] = ["Parameters (`params.yaml`):"]
    settings = {
        "data": params.data,
        "seed": params.seed,
        "seeds": params.seeds,
        "network": params.network,
        "training": params.training,
        "sampler": params.sampler,
    }
    opponents = {structure.opponents for structure in params.structures.values()}
    opponents |= {structure.evolving for structure in params.structures.values()}
    sections = ("fixed", "online_fgsm", "online_pgd", "evolving")
    settings |= {name: getattr(params, name) for name in sections if name in opponents}
    settings |= {"monitor": params.monitor} if params.monitor.every else {}
    transforms = {structure.transform for structure in params.structures.values()} - {"none"}
    settings |= {name: getattr(params, name) for name in sorted(transforms)}
    if results.detectors:
        settings |= {"detector": params.detector, "detection": params.detection}
    settings |= {"structures": params.structures, "mixture": params.mixture, "whitebox": params.whitebox}
    parts.append("\n".join(f"- {name}: {escape.markdown(_text(value))}" for name, value in settings.items()))
    parts.append(f"Classes, by the number of their output: {escape.markdown(outputs(results.classes))}.")
    if not timings:
        return parts
    machines = {f"{timing.get('hardware', '?')}, torch {timing.get('torch', '?')}" for timing in timings}
    columns = {"stage": "stage", "images": "images", "seconds": "seconds", "images_per_second": "images/s"}
    columns |= {"device": "device", "precision": "precision"}
    rows = [{title: str(timing.get(key, "-")) for key, title in columns.items()} for timing in timings]
    total = sum(float(timing.get("seconds", 0)) for timing in timings)
    caption = f"The time of each stage; {total:.0f} s in all."
    hardware = escape.markdown("; ".join(sorted(machines)))
    return [*parts, f"Hardware: {hardware}.", plain("timings", caption, pd.DataFrame(rows))]


def _text(value: Any) -> str:
    """Write a section of the parameters, or a single value, in one line."""
    if hasattr(value, "model_dump"):
        value = value.model_dump()
    if not isinstance(value, dict):
        return str(value)
    inner = {key: f"({_text(entry)})" if isinstance(entry, dict) else _text(entry) for key, entry in value.items()}
    return ", ".join(f"{key} {text}" for key, text in inner.items()) or "none"


def draw_curves(folder: Path, histories: dict[str, pd.DataFrame]) -> None:
    """Draw loss and accuracy by epoch, a line for each model, with panels for detectors and attacks if any."""
    titles = {
        "detector_accuracy": "Accuracy of the detector\n(training images)",
        "pgd_accuracy": "Under attack, validation images\n(dotted: FGSM, solid: PGD)",
    }
    extra_columns = [column for column in titles if any(column in history for history in histories.values())]
    with canvas(folder, "curves", 7.5 + 3.5 * len(extra_columns), 3.4) as figure:
        panels = list(figure.subplots(1, 2 + len(extra_columns), squeeze=False)[0])
        for number, (name, trainings) in enumerate(histories.items()):
            history = trainings.groupby("epoch", as_index=False).mean()
            colour, marker = COLOURS[number % len(COLOURS)], "o" if len(history) <= 30 else ""
            look = {"color": colour, "marker": marker, "markersize": 3, "linewidth": 1.4}
            dash, label = DASHES[number // len(COLOURS) % len(DASHES)], short(name, LONGEST)
            panels[0].plot(history["epoch"] + 1, history["loss"], label=label, linestyle=dash, **look)
            panels[1].plot(history["epoch"] + 1, history["accuracy"], color=colour, linestyle=":", linewidth=1.2)
            if history["validation_accuracy"].notna().any():
                panels[1].plot(history["epoch"] + 1, history["validation_accuracy"], linestyle=dash, **look)
            for panel, column in zip(panels[2:], extra_columns, strict=True):
                rows = history.dropna(subset=column) if column in history else history[:0]
                if len(rows):
                    panel.plot(rows["epoch"] + 1, rows[column], label=label, linestyle=dash, **look)
                if len(rows) and column == "pgd_accuracy":
                    panel.plot(rows["epoch"] + 1, rows["fgsm_accuracy"], color=colour, linestyle=":", linewidth=1.2)
        panels[0].set(title="Training loss", ylim=(0, None))
        panels[1].set(title="Accuracy\n(dotted: training images, solid: validation images)", ylim=(0, 1.02))
        for panel, column in zip(panels[2:], extra_columns, strict=True):
            panel.set(title=titles[column], ylim=(0, 1.02))
            panel.legend()
        panels[0].legend()
        for panel in panels:
            panel.set_xlabel("epoch")
            panel.xaxis.set_major_locator(MaxNLocator(integer=True))
