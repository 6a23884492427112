"""The article's claims beside what this run says of them, in words and as tables."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from sparring import statistics
from sparring.params.names import ABLATED, BASELINE, EVALUATED_SPLITS
from sparring.report import escape, paper
from sparring.report.differences import chance_note, scope, signed_row, trainings_of
from sparring.report.page import Folded, Section
from sparring.report.paper import claims
from sparring.report.results import Results
from sparring.report.table import ACCURACY, Table, number, records, with_interval


def withstanding(results: Results, worst: pd.DataFrame, compared: Mapping[Any, Mapping[Any, Any]]) -> str:
    """Say in words which structures withstand an attacker who aims at them: better than guessing and better than the
    baseline, both beyond chance. The article has no such attacker.

    worst: accuracy in the white-box worst case within any radius, by structure.
    compared: (structure, other) → their comparison in that case, with side and trainings.
    """
    trained = {name: entry for name, entry in results.params.trained.items() if name in worst.index}
    if not trained:
        return ""
    guessing = 1 / len(results.classes)
    better = f"withstood no better, beyond chance, than by guessing or {BASELINE} by"
    by_verdict: dict[str, list[str]] = {"withstood by": [], "not withstood by": [], better: []}
    for row in records(worst.loc[list(trained)]):
        accuracy = (row.accuracy, row.ci_low, row.ci_high, row.sd)
        low, high = statistics.over_trainings(*accuracy, row.trainings)
        verdict = better if high >= guessing else "not withstood by"
        if low > guessing and compared[(row.Index, BASELINE)]["side"] > 0:
            verdict = "withstood by"
        by_verdict[verdict].append(f"{escape.markdown(row.Index)} {with_interval(*accuracy)}")
    parts = [f"{verdict} {', '.join(names)}" for verdict, names in by_verdict.items() if names]
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


def sections(
    results: Results,
    stated: Table,
    mixture: pd.DataFrame,
    per_attack: pd.DataFrame,
    worst: pd.DataFrame,
    aimed: Mapping[Any, Any],
) -> tuple[Section, list[Section]]:
    """Return the section that says what was reproduced, in a sentence per claim, and a section with the tables behind
    it, in a list that is empty where there is nothing to compare.

    stated: from `claims.claims`.  mixture, per_attack: the tidy frames of Tables 2 and 4.  worst, aimed: as
    `withstanding` takes them.
    """
    params = results.params
    beside = claims.beside(mixture, per_attack)
    sentences, notes = claims.in_words(stated.tidy), [paper.note(params, results.clean)]
    title = "What was reproduced, and what was not"
    if len(stated.tidy) and trainings_of(stated.tidy) == 1:
        title = "The paper's claims, in one training"
        sentences.append(
            "Each structure was trained once, so nothing is reproduced or contradicted here: another training may "
            "come out otherwise."
        )
        notes.insert(0, chance_note(1))
    sentences.append(withstanding(results, worst, aimed))
    sentences += claims.within(beside.tidy)
    if ABLATED in results.detectors:
        trainings = results.mixture.loc[results.mixture["structure"] == ABLATED, "seed"].nunique()
        facts = {split: results.detected[ABLATED, split] for split in EVALUATED_SPLITS}
        sentences.append(claims.of_detector(params, facts, trainings))
    tables = [table for table in (stated, beside) if len(table.tidy)]
    bullets = "\n".join(f"- {sentence}" for sentence in sentences if sentence)
    folded = Folded("What these figures are of", notes)
    return Section(title, [bullets, folded]), [Section("The paper's tables beside ours", tables)] if tables else []
