"""The opening of the report: its figures at a glance, what they say, and the article's claims beside them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sparring import statistics
from sparring.params.names import ABLATED, BASELINE, CLEAN, EVALUATED_SPLITS
from sparring.report import escape, paper
from sparring.report.differences import chance_note, differences_note, scope, signed_row, trainings_of
from sparring.report.figure import COLOURS, LONGEST, canvas, error_bars
from sparring.report.lettering import short
from sparring.report.page import Figure, Section
from sparring.report.paper import claims
from sparring.report.results import Results
from sparring.report.table import (
    ACCURACY,
    INTERVALS,
    SPLIT_TITLES,
    Table,
    attack_title,
    number,
    plain,
    records,
    with_interval,
)


def section(
    results: Results, mixture: pd.DataFrame, per_attack: pd.DataFrame, worst: pd.DataFrame, folder: Path
) -> Section:
    """The report's first section.

    mixture, per_attack: the tidy frames of Tables 2 and 4.  worst: of the white-box worst case within any radius, by
    structure; accuracy with its interval, images, side (of the difference to the baseline) and trainings.
    """
    drawn = []
    if mixture["images"].any():
        draw_mixture(folder, mixture)
        drawn = [Figure("mixture", "Accuracy on the mixture, with 95 % intervals.")]
    glance = _glance(results, mixture, per_attack, worst)
    return Section("Summary", [glance, *_opening(results, mixture, worst), *drawn])


def _glance(results: Results, mixture: pd.DataFrame, per_attack: pd.DataFrame, worst: pd.DataFrame) -> Table:
    """One row a structure: the few figures that one looks for first."""
    rows = []
    for name in results.structures:
        row = {"structure": name}
        if name in worst.index:
            row["white-box, worst case"] = with_interval(*worst.loc[name, list(ACCURACY)])
        by_split = mixture[mixture["structure"] == name].set_index("split")
        single = per_attack[(per_attack["structure"] == name) & (per_attack["split"] == "test")].set_index("attack")
        cells = {"clean test images": single.loc[CLEAN]}
        cells |= {f"mixture, {SPLIT_TITLES[split].lower()}": by_split.loc[split] for split in EVALUATED_SPLITS}
        row |= {title: with_interval(*cell[list(ACCURACY)]) for title, cell in cells.items()}
        attacked = single.drop(index=CLEAN)
        if attacked["accuracy"].notna().any():
            weakest = attacked.nsmallest(1, "accuracy")
            row["weakest under"] = attack_title(results.params, str(weakest.index[0]))
            row["accuracy there"] = with_interval(*weakest[list(ACCURACY)].to_numpy(float)[0])
        if name in results.detectors:
            row["detector's AUROC"] = number(results.detected[name, "test"]["auroc"])
        rows.append(row)
    return plain(
        "summary",
        f"Accuracy at a glance. The worst case is that of attackers who aim at each structure itself; all else is "
        f"white-box for {BASELINE} alone, and transfer for the others.",
        pd.DataFrame(rows).fillna("-"),
        [INTERVALS],
    )


def _opening(results: Results, mixture: pd.DataFrame, worst: pd.DataFrame) -> list[str]:
    params, clean = results.params, results.clean
    unseen = f", and {len(params.unseen_attacks)} that nobody trained on" if params.unseen_attacks else ""
    attacks, structures = ([escape.markdown(name) for name in names] for names in (params.attacks, params.trained))
    others = [escape.markdown(name) for name, entry in params.trained.items() if entry.online]
    online = f" ({', '.join(others)}: on attacks made on the fly instead)" if others else ""
    for also, word in ((False, "on"), (True, "also on")):
        entries = params.trained.items()
        names = [escape.markdown(name) for name, entry in entries if entry.evolves and entry.stored == also]
        online += f" ({', '.join(names)}: {word} perturbations that follow the net)" if names else ""
    source = escape.markdown(clean["train"].metadata["source"])
    lines = [
        f"Data: {source}, {len(results.classes)} classes, {len(clean['train'])} training, "
        f"{len(clean['test'])} test and {len(clean['heldout'])} held-out images. Opponents: {', '.join(attacks)}"
        f"{unseen}. Each attacked every image once, on the pretrained net, and the results were stored; the "
        f"structures ({', '.join(structures) or 'none'}) were trained on them{online} for "
        f"{params.training.epochs} epochs and are compared with the pretrained net itself (`{BASELINE}`)."
    ]
    bullets = _aimed_at_themselves(worst)
    for split in EVALUATED_SPLITS:
        rows = mixture[(mixture["split"] == split) & mixture["accuracy"].notna()]
        shares = [
            f"{escape.markdown(row.structure)} {with_interval(row.accuracy, row.ci_low, row.ci_high, row.sd)}"
            for row in records(rows)
        ]
        if shares:
            title = SPLIT_TITLES[split]
            bullets.append(f"- {title}, accuracy on a mixture of clean and attacked images: {', '.join(shares)}.")
            bullets += [f"  - {line}" for line in _differences(results, split)]
    if results.left_out:
        bullets.append(
            "- **Left out of this run**: "
            + "; ".join(f"{part} ({escape.markdown(why)})" for part, why in results.left_out.items())
            + "."
        )
    count = trainings_of(results.on_mixture)
    notes = [f"{differences_note(count)} {chance_note(count)}"] if params.trained and bullets else []
    return [*lines, *(["\n".join(bullets)] if bullets else []), *notes]


def _aimed_at_themselves(worst: pd.DataFrame) -> list[str]:
    """The white-box worst case in words, as who reads the summary alone would take the mixture's figures for it."""
    if worst.empty:
        return []
    names = {name: escape.markdown(str(name)) for name in worst.index}
    shares = [f"{names[name]} {with_interval(*worst.loc[name, list(ACCURACY)])}" for name in names]
    lower = [names[name] for name in names if worst.loc[name, "side"] < 0]
    warning = ""
    if lower:
        where = scope(trainings_of(worst))
        warning = f"; {where}lower than {BASELINE} beyond chance, whatever they gain elsewhere: {', '.join(lower)}"
    count = int(worst["images"].max())
    case = f"worst case on {count} test images"
    return [f"- Attackers who aim at each structure itself, {case}: {', '.join(shares)}{warning}."]


def _differences(results: Results, split: str) -> list[str]:
    """Each structure against the baseline, each detector, and each transform, against the same structure without one,
    and the sampler against other opponents."""
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


def withstanding(results: Results, worst: pd.DataFrame, compared: Mapping[Any, Mapping[Any, Any]]) -> str:
    """Whether structures withstand an attacker who aims at them, in words: more often than guessing and than the
    baseline, both beyond chance. The article has no such attacker.

    worst: of the white-box worst case within any radius, by structure.  compared: structures in that case, with side
    and trainings, by structure and other.
    """
    trained = {name: entry for name, entry in results.params.trained.items() if name in worst.index}
    if not trained:
        return ""
    guessing = 1 / len(results.classes)
    better = f"withstood no better, beyond chance, than by guessing or {BASELINE} by"
    said: dict[str, list[str]] = {"withstood by": [], "not withstood by": [], better: []}
    for row in records(worst.loc[list(trained)]):
        accuracy = (row.accuracy, row.ci_low, row.ci_high, row.sd)
        low, high = statistics.over_trainings(*accuracy, row.trainings)
        verdict = better if high >= guessing else "not withstood by"
        if low > guessing and compared[(row.Index, BASELINE)]["side"] > 0:
            verdict = "withstood by"
        said[verdict].append(f"{escape.markdown(row.Index)} {with_interval(*accuracy)}")
    parts = [f"{verdict} {', '.join(names)}" for verdict, names in said.items() if names]
    text = (
        "The paper has no attacker who aims at the defended net. Here, in the worst case of those attacks on "
        f"{int(worst['images'].max())} test images, where guessing gets {number(guessing)} and {BASELINE} "
        f"{with_interval(*worst.loc[BASELINE, list(ACCURACY)])}, such an attacker is {'; '.join(parts)}."
    )
    following = [name for name, entry in trained.items() if entry.evolves]
    stored = [name for name, entry in trained.items() if entry.stored and not entry.evolves]
    differences = [
        f"{escape.markdown(name)} minus {escape.markdown(other)} {signed_row(row)}, "
        f"{scope(row['trainings'])}{'beyond chance' if row['side'] else 'not told apart'}"
        for name in following
        for other in stored
        for row in [compared[(name, other)]]
    ]
    aside = "Perturbations that follow the net against stored attacks alone: "
    return text + (f" {aside}{'; '.join(differences)}." if differences else "")


def paper_sections(
    results: Results, mixture: pd.DataFrame, per_attack: pd.DataFrame, worst: pd.DataFrame, aimed: Mapping[Any, Any]
) -> tuple[Section, list[Section]]:
    """What was reproduced, in words, and, where there is anything to compare, the tables that the words are from.

    mixture, per_attack: the tidy frames of Tables 2 and 4.  worst, aimed: as `withstanding` takes them.
    """
    params = results.params
    beside = claims.beside(mixture, per_attack)
    stated = claims.claims(params, pd.concat([results.on_mixture, results.on_attacks]))
    verdicts = claims.in_words(stated.tidy)
    title = "What was reproduced, and what was not"
    if len(stated.tidy) and trainings_of(stated.tidy) == 1:
        title = "The paper's claims, in one training"
        verdicts.append(
            "Each structure was trained once, so nothing is reproduced or contradicted here: another training may "
            f"come out otherwise. {chance_note(1)}"
        )
    sentences = claims.within(beside.tidy)
    if ABLATED in results.detectors:
        trainings = results.mixture.loc[results.mixture["structure"] == ABLATED, "seed"].nunique()
        sentences.append(
            claims.of_detector(
                params, {split: results.detected[ABLATED, split] for split in EVALUATED_SPLITS}, trainings
            )
        )
    texts = [" ".join(verdicts), withstanding(results, worst, aimed), " ".join(sentences)]
    texts.append(paper.note(params, results.clean))
    shown = [table for table in (stated, beside) if len(table.tidy)]
    tables = [Section("The paper's tables beside ours", shown)] if shown else []
    return Section(title, [text for text in texts if text]), tables


def draw_mixture(folder: Path, table: pd.DataFrame) -> None:
    """Accuracy on the mixture with 95 % intervals; a line a structure, a mark a split, a diamond for the paper.

    table: columns split, structure, accuracy, ci_low, ci_high, paper.
    """
    structures = list(dict.fromkeys(table["structure"]))
    with canvas(folder, "mixture", 6.5, 1.3 + 0.5 * len(structures)) as figure:
        axes = figure.subplots()
        for number, (split, name, marker) in enumerate((("test", "test", "o"), ("heldout", "held-out", "s"))):
            rows = table[table["split"] == split]
            axes.errorbar(
                rows["accuracy"],
                np.arange(len(structures)) + 0.2 * number - 0.1,
                xerr=error_bars(rows),
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
