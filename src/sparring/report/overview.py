"""The first screen of the report, in a sentence for each question and one picture: how accurate, how robust against
stored attacks, how robust against an attacker who aims at the net, at what cost."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sparring.params.names import BASELINE, CLEAN, EVALUATED_SPLITS, MIXTURE
from sparring.params.structures import Structure
from sparring.report import escape, read
from sparring.report.differences import capitalised, chance_note, differences_note, scope, signed_row, trainings_of
from sparring.report.figure import LONGEST, bars, canvas, error_bars
from sparring.report.lettering import short
from sparring.report.page import Figure, Folded, Section
from sparring.report.results import Results
from sparring.report.table import ACCURACY, INTERVALS, SPLIT_TITLES, Table, number, plain, records, with_interval

Answers = dict[str, pd.DataFrame]  # question → by structure: accuracy with its interval, images, side and trainings
NAMED_CLASSES = 5  # that the title names at most
ACCURATE, GALLERY, AIMED = "clean images", "stored attacks (mixture)", "attacks aimed at it (worst case)"


def title(results: Results) -> str:
    """Name the data, the net, and the two questions of the report."""
    source, path = results.clean["train"].metadata["source"], results.params.data.path
    if source in ("folder", "parquet") and path:  # the user's own: their folder says what they are
        source = Path(path).name or source
        if len(results.classes) <= NAMED_CLASSES:
            source += f" ({', '.join(results.classes)})"
    return escape.printable(f"{source}, {results.params.network.words}: how accurate, and how robust")


def answers(results: Results, mixture: pd.DataFrame, per_attack: pd.DataFrame, worst: pd.DataFrame) -> Answers:
    """Return accuracies on test images by the questions of the first screen: clean, stored attacks, aimed attacks.

    A question without images is left out.
    mixture, per_attack: the tidy frames of Tables 2 and 4.  worst: of the white-box worst case within any radius, by
    structure; accuracy with its interval, images, side (of the difference to the baseline) and trainings.
    """
    compared = results.all_comparisons
    sides: Mapping[Any, Any] = compared["side"].to_dict()
    both = pd.concat([per_attack, mixture])
    known = both[(both["split"] == "test") & both["accuracy"].notna()].set_index("structure")
    frames = {}
    for question, attack in ((ACCURATE, CLEAN), (GALLERY, MIXTURE)):
        rows = known[known["attack"] == attack]
        side = [sides.get(("test", attack, name, BASELINE), 0) for name in rows.index]
        frames[question] = rows.assign(side=side, trainings=trainings_of(compared))
    frames[AIMED] = worst
    return {question: rows for question, rows in frames.items() if len(rows)}


def section(
    results: Results, answers: Answers, timings: Sequence[dict[str, Any]], claims: pd.DataFrame, folder: Path
) -> Section:
    """Make the report's first section, and draw its figure.

    answers: from `answers`.  timings: of stages, from `read.timings`.  claims: the tidy frame of `claims.claims`.
    """
    drawing = []
    if answers:
        draw_overview(folder, answers)
        drawing = [Figure("overview", f"Accuracy on test images, with 95 % intervals. {_kinds(answers)}")]
    seconds = read.seconds_to_train(results.params, timings)
    verdicts = [*_verdicts(answers), *_cost(timings, seconds), *_paper(claims)]
    if results.left_out:
        reasons = (f"{part} ({escape.markdown(why)})" for part, why in results.left_out.items())
        verdicts.append("**Left out of this run**: " + "; ".join(reasons) + ".")
    bullets = ["\n".join(f"- {verdict}" for verdict in verdicts)] if verdicts else []
    table = _table(results, answers, seconds)
    return Section("At a glance", [_subject(results), *drawing, *bullets, table, *_differences(results)])


def _kinds(answers: Answers) -> str:
    """Say for whom which attacks are white-box, and for whom they are transfer."""
    text = f"Stored attacks were made against {BASELINE} alone: for the others they are transfer."
    return text + (" Attacks aimed at a structure use its own gradients." if AIMED in answers else "")


def _subject(results: Results) -> str:
    """Say what was trained, on which images, against which attacks."""
    params, clean = results.params, results.clean
    unseen = f", and {len(params.unseen_attacks)} that nobody trained on" if params.unseen_attacks else ""
    attacks, structures = ([escape.markdown(name) for name in names] for names in (params.attacks, params.trained))
    others: dict[str, Callable[[Structure], bool]] = {
        "on attacks made on the fly instead": lambda entry: entry.online,
        "on clean images alone": lambda entry: entry.opponents == "none",
        "on perturbations that follow the net": lambda entry: entry.evolves and not entry.stored,
        "also on perturbations that follow the net": lambda entry: entry.evolves and entry.stored,
    }
    exceptions = []
    for opponents, applies in others.items():
        names = [escape.markdown(name) for name, entry in params.trained.items() if applies(entry)]
        exceptions += [f"{', '.join(names)}: {opponents}"] if names else []
    but = f" ({'; '.join(exceptions)})" if exceptions else ""
    return (
        f"{len(results.classes)} classes; {len(clean['train']):,} training, {len(clean['test']):,} test and "
        f"{len(clean['heldout']):,} held-out images. Attacks, stored once, against the pretrained net (`{BASELINE}`): "
        f"{', '.join(attacks)}{unseen}. Structures, trained on them{but} for {params.training.epochs} epochs: "
        f"{', '.join(structures) or 'none'}."
    )


def _verdicts(answers: Answers) -> list[str]:
    """Answer each question in a sentence: accuracies, and which structures differ from the baseline beyond chance."""
    questions = {
        ACCURATE: ("How accurate?", "clean test images"),
        GALLERY: ("How robust against the stored attacks?", "test images, a part of them under such an attack"),
        AIMED: (
            "How robust against an attacker who aims at the net?",
            "test images in the worst of all attacks on each net",
        ),
    }
    lines = []
    for question, rows in answers.items():
        question_text, images = questions[question]
        shares = ", ".join(f"{escape.markdown(row.Index)} {number(row.accuracy)}" for row in records(rows))
        lines.append(
            f"**{question_text}** Right on {int(rows['images'].max()):,} {images}: {shares}{_beside_baseline(rows)}."
        )
    return lines


def _beside_baseline(rows: pd.DataFrame) -> str:
    """Say which structures differ from the baseline beyond chance: text that ends a sentence and begins another."""
    words = {1: "beyond chance better than", -1: "beyond chance worse than", 0: "not told apart from"}
    others = rows.drop(index=BASELINE, errors="ignore")
    parts = []
    for side, word in words.items():
        names = [escape.markdown(str(name)) for name in others.index[others["side"] == side]]
        parts += [f"{word} {BASELINE}: {', '.join(names)}"] if names else []
    return f". {capitalised(scope(trainings_of(rows)) + '; '.join(parts))}" if parts else ""


def _cost(timings: Sequence[dict[str, Any]], seconds: Mapping[str, float]) -> list[str]:
    """Say how long training and attacking took; nothing without timings.  seconds: of one training, by structure."""
    if not timings:
        return []
    trainings = [f"{escape.markdown(name)} {number(taken, 0)} s" for name, taken in seconds.items()]
    attacks = sum(float(timing["seconds"]) for timing in timings if str(timing["stage"]).startswith("attack@"))
    total = sum(float(timing["seconds"]) for timing in timings)
    machines = escape.markdown("; ".join(sorted({str(timing.get("hardware", "?")) for timing in timings})))
    costs = [f"one training: {', '.join(trainings)}"] if trainings else []
    costs += [f"the stored attacks, made once, {attacks:.0f} s", f"all stages {total:.0f} s, on {machines}"]
    return [f"**What did it cost?** {capitalised('; '.join(costs))}."]


def _paper(claims: pd.DataFrame) -> list[str]:
    """Say how many of the article's differences on the mixture have which verdict in this run."""
    rows = claims[(claims["attack"] == MIXTURE) & (claims["split"] == "test")]
    if rows.empty:
        return []
    counts = rows["verdict"].value_counts(sort=False)
    shares = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    return [
        f"**Does the paper hold?** Of its differences between structures on the mixture ({len(rows)}), "
        f"{scope(trainings_of(rows))}{shares}."
    ]


def _table(results: Results, answers: Answers, seconds: Mapping[str, float]) -> Table:
    rows = []
    for name in results.structures:
        row = {"structure": name}
        for question, frame in answers.items():
            row[question] = with_interval(*frame.loc[name, list(ACCURACY)]) if name in frame.index else "-"
        rows.append(row | {"training, s": number(seconds.get(name), 0)})
    caption = "Accuracy on test images, and the time of one training."
    return plain("summary", caption, pd.DataFrame(rows), [INTERVALS])


def _differences(results: Results) -> list[Folded]:
    """Return the differences of `_compared` on the mixture, folded; nothing without images."""
    paragraphs = []
    for split in EVALUATED_SPLITS:
        if results.mixture["split"].eq(split).any():
            lines = [f"- {line}" for line in _compared(results, split)]
            paragraphs += ["\n".join([f"{SPLIT_TITLES[split]}, accuracy on the mixture:\n", *lines])] if lines else []
    if not paragraphs:
        return []
    count = trainings_of(results.on_mixture)
    return [Folded("Which differences count", [*paragraphs, f"{differences_note(count)} {chance_note(count)}"])]


def _compared(results: Results, split: str) -> list[str]:
    """Return a line for each difference that shows what a part of a structure is worth: every structure minus the
    baseline, one with a detector or a transform minus the same without, the sampler minus other opponents."""
    structures = results.params.trained
    pairs = [(name, BASELINE) for name in structures]
    pairs += [
        (name, other)
        for name in results.detectors
        for other, entry in structures.items()
        if entry == structures[name].model_copy(update={"detector": "none"})
    ]
    pairs += [
        (name, other)
        for name, structure in structures.items()
        for other, entry in structures.items()
        if structure.transform != "none" and entry == structure.model_copy(update={"transform": "none"})
    ]
    alone = {name: entry for name, entry in structures.items() if entry.detector == "none"}
    pairs += [
        (name, other)
        for name, structure in alone.items()
        for other, entry in alone.items()
        if structure.opponents == "sampler" != entry.opponents and structure.transform == entry.transform
    ]
    lines = []
    for name, other in pairs:
        compared = results.compared(split, name, other)
        verdict = f"{scope(compared['trainings'])}{'beyond chance' if compared['side'] else 'not told apart'}"
        equivalent = ", within ±1 point" if compared["equivalent"] else ""
        pair = f"{escape.markdown(name)} minus {escape.markdown(other)}"
        lines.append(f"{pair}: {signed_row(compared)}; {verdict}{equivalent}")
    return lines


def draw_overview(folder: Path, answers: Answers) -> None:
    """Draw the accuracy of every structure, one bar per question, with 95 % intervals."""
    names = list(next(iter(answers.values())).index)
    with canvas(folder, "overview", max(6.5, 1.1 * len(names)), 3.4) as figure:
        axes = figure.subplots()
        width = 0.8 / len(answers)
        for place, (question, frame) in enumerate(answers.items()):
            rows = frame.reindex(names)
            left = np.arange(len(names)) + width * (place - (len(answers) - 1) / 2)
            bars(axes, place, left, rows["accuracy"], error_bars(rows), width, question)
            for x, row in zip(left, records(rows), strict=True):
                if not np.isnan(row.accuracy):
                    axes.annotate(
                        f"{row.accuracy:.2f}", (x, row.ci_high), (0, 2), textcoords="offset points", ha="center"
                    )
        axes.set_xticks(np.arange(len(names)), [short(name, LONGEST) for name in names])
        axes.set(ylabel="accuracy", ylim=(0, 1.1))
        axes.grid(False, axis="x")
        figure.legend(loc="outside upper center", ncols=len(answers))
