"""The article's figures and the differences that it states, beside ours, as tables and in words."""

import itertools
import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from sparring import statistics
from sparring.params import Params
from sparring.params.names import BASELINE, CLEAN, EVALUATED_SPLITS, MIXTURE
from sparring.report import paper
from sparring.report.differences import (
    DIFFERENCE,
    capitalised,
    chance_note,
    differences_note,
    probability,
    scope,
    signed,
    signed_row,
    trainings_of,
)
from sparring.report.table import ACCURACY, INTERVALS, SPLIT_TITLES, Table, intervals, number, records, with_interval

STRUCTURES = (BASELINE, "adv", "ours")


def beside(mixture: pd.DataFrame, single: pd.DataFrame) -> Table:
    """Return a table of the accuracies in the paper's Tables 2 and 4 that this run has too, beside ours.

    mixture, single: the tidy frames of Tables 2 and 4.
    Its tidy frame has minus_paper (ours minus the paper's) and within (whether the paper's lies within our interval).
    """
    both = pd.concat([mixture.assign(table=2), single.assign(table=4)], ignore_index=True)
    columns = ["table", "split", "structure", "attack", *ACCURACY, "paper"]
    tidy = both.loc[both["paper"].notna() & both["accuracy"].notna(), columns].reset_index(drop=True)
    tidy["minus_paper"] = tidy["accuracy"] - tidy["paper"]
    tidy["within"] = (tidy["ci_low"] <= tidy["paper"]) & (tidy["paper"] <= tidy["ci_high"])
    wide = {}
    for split in EVALUATED_SPLITS:
        rows = tidy[tidy["split"] == split]
        if len(rows):
            wide[SPLIT_TITLES[split]] = pd.DataFrame(
                {
                    "table": [str(table) for table in rows["table"]],
                    "structure": list(rows["structure"]),
                    "images": list(rows["attack"]),
                    "paper": [number(value, 4) for value in rows["paper"]],
                    "here": intervals(rows, *ACCURACY),
                    "here minus paper": [signed(value) for value in rows["minus_paper"]],
                    "paper within our interval": ["yes" if within else "no" for within in rows["within"]],
                }
            )
    return Table("paper", "The paper's Tables 2 and 4 beside ours.", tidy, wide, [INTERVALS, paper.RESTORED])


def within(beside: pd.DataFrame) -> list[str]:
    """Say in a sentence for each split how many of the paper's accuracies lie within our intervals.

    beside: the tidy frame of the function `beside`.
    """
    sentences = []
    for split, rows in beside.groupby("split", sort=False):
        inside = rows["within"]
        above = int((rows["minus_paper"] > 0)[~inside].sum())
        sentences.append(
            f"On {SPLIT_TITLES[str(split)].lower()}, our interval over images contains {int(inside.sum())} of "
            f"the {len(rows)} accuracies in the paper's Tables 2 and 4; of the others, ours is above {above} and below "
            f"{len(rows) - int(inside.sum()) - above}."
        )
    return sentences


def claims(params: Params, compared: pd.DataFrame) -> Table:
    """Return a table of the differences between structures in the paper's Tables 2 and 4, and our verdict on each.

    compared: from statistics.comparisons by split and attack, of the mixture (attack `mixture`) and of each attack.
    Its tidy frame has one row per claim and split, with `verdict`, one of `verdicts`.
    """
    mixture = paper.mixture(params).rename("paper").reset_index().assign(attack=MIXTURE)
    published = pd.concat([mixture, paper.per_attack()]).set_index(["attack", "structure"])["paper"]
    claims: list[dict[Any, Any]] = []
    attacks = [name for name in (MIXTURE, CLEAN, *params.attacks) if name in published.index.get_level_values("attack")]
    pairs = [(later, first) for first, later in itertools.combinations(STRUCTURES, 2)]
    ours = compared.to_dict("index")
    for attack, (structure, other), split in itertools.product(attacks, pairs, EVALUATED_SPLITS):
        if (split, attack, structure, other) in ours:
            theirs = round(float(published[(attack, structure)] - published[(attack, other)]), 4)
            difference = ours[(split, attack, structure, other)]
            verdict = _verdict(theirs, difference["side"], difference["trainings"])
            claim = {"split": split, "attack": attack, "structure": structure, "other": other, "paper": theirs}
            claims.append({**claim, **difference, "verdict": verdict})
    columns = ["split", "attack", "structure", "other", "paper", *DIFFERENCE]
    columns += ["p", "images", "trainings", "equivalent", "verdict"]
    tidy = pd.DataFrame(claims, columns=columns)
    wide = {}
    for split in EVALUATED_SPLITS:
        of_split = tidy[tidy["split"] == split]
        if len(of_split):
            wide[SPLIT_TITLES[split]] = pd.DataFrame(
                {
                    "difference": [f"{row.structure} minus {row.other}" for row in records(of_split)],
                    "images": list(of_split["attack"]),
                    "paper": [signed(value) for value in of_split["paper"]],
                    "here": [
                        signed(row.difference, row.difference_low, row.difference_high) for row in records(of_split)
                    ],
                    "McNemar's p": [probability(p) for p in of_split["p"]],
                    "verdict": [row.verdict + ", within ±1 point" * row.equivalent for row in records(of_split)],
                }
            )
    return Table(
        "claims",
        "The differences between structures in the paper, and here.",
        tidy,
        wide,
        _notes(trainings_of(tidy)),
    )


def verdicts(count: int) -> tuple[str, str, str]:
    """Return the words for three verdicts on a difference in the paper: ours has its sign beyond chance, chance could
    have made ours, ours has the other sign beyond chance.

    count: of the trainings that ours is from; one does not make a reproduction.
    """
    if count == 1:
        return "on the paper's side", "not told apart", "on the other side"
    return "reproduced", "not shown", "contradicted"


def _verdict(paper: float, side: int, count: int) -> str:
    same, neither, opposite = verdicts(count)
    if not side:
        return neither
    return same if (side > 0) == (paper > 0) else opposite


def _notes(count: int) -> list[str]:
    same, neither, opposite = (f"*{word.capitalize()}*" for word in verdicts(count))
    return [
        f"{same}: our difference has the sign of the paper's, beyond chance and whatever its size; {opposite}: it has "
        f"the other sign, beyond chance; {neither}: chance could have made it. With this many differences, one or "
        f"another is beyond chance by chance. {chance_note(count)}",
        f"{differences_note(count)} McNemar's p is over images alone.",
    ]


def in_words(claims: pd.DataFrame) -> list[str]:
    """Put the verdicts on the paper's claims in sentences: each on the mixture in words, those of its Table 4 counted.

    claims: the tidy frame of the function `claims`.
    """
    if claims.empty:
        return ["No two of the paper's structures were trained and measured here, so none of its claims was tried."]
    trainings = claims["trainings"]
    return [text for count in trainings.unique() for text in _in_words(claims[trainings == count], int(count))]


def _in_words(claims: pd.DataFrame, count: int) -> list[str]:
    """Do as `in_words` for claims that were all tried with `count` trainings."""
    same, neither, opposite = words = verdicts(count)
    where, differs = scope(count), "not the same on test and on held-out images"
    by_verdict: dict[str, list[str]] = {word: [] for word in (same, differs, neither, opposite)}
    on_mixture = claims[claims["attack"] == MIXTURE]
    for (structure, other), rows in on_mixture.groupby(["structure", "other"], sort=False):
        verdict = rows["verdict"].iloc[0] if rows["verdict"].nunique() == 1 else differs
        ours = " and ".join(
            f"{signed_row(row)} on {SPLIT_TITLES[row['split']].lower()}"
            + (f", {row['verdict']}" if verdict == differs else "")
            + (", within ±1 point" if row["equivalent"] else "")
            for row in rows.to_dict("records")
        )
        theirs = rows["paper"].iloc[0]
        claim = f"that {structure} {'beats' if theirs > 0 else 'falls behind'} {other} on the mixture"
        by_verdict[verdict].append(f"{claim} (paper {signed(theirs)}; here {ours})")
    sentences = [
        f"{capitalised(f'{where}{verdict}')}: {'; '.join(texts)}." for verdict, texts in by_verdict.items() if texts
    ]
    single = claims[(claims["attack"] != MIXTURE) & (claims["split"] == claims["split"].iloc[0])]
    if len(single):
        counts = single["verdict"].value_counts()
        parts = ", ".join(f"{counts.get(word, 0)} {word}" for word in words)
        sentences.append(
            f"Of the {len(single)} differences that the paper's Table 4 states for clean images and single attacks, "
            f"{where}on {SPLIT_TITLES[single['split'].iloc[0]].lower()}: {parts}."
        )
    return sentences


def of_detector(params: Params, facts: Mapping[str, Mapping[str, float]], trainings: int) -> str:
    """Compare the detector's accuracy with always giving the commoner answer, in words; nothing without images.

    facts: of the detector by split, as results.detector_facts.  trainings: how many they are from.
    """
    published, sentences = paper.detector(params), []
    for split in EVALUATED_SPLITS:
        majority = facts[split]["majority"]
        if not math.isnan(majority):
            value, low, high, sd = (facts[split][column] for column in ACCURACY)
            lowest, _ = statistics.over_trainings(value, low, high, sd, trainings)
            sentences.append(
                f"{with_interval(value, low, high, sd)} on {SPLIT_TITLES[split].lower()}, which "
                f"{'beats' if lowest > majority else 'does not beat'} always giving the commoner answer "
                f"({number(majority)}) beyond chance"
            )
    theirs = f" (paper {published:.4f})" if published is not None else ""
    subject = capitalised(f"{scope(trainings)}the detector's accuracy on the mixture{theirs}")
    return f"{subject} is {' and '.join(sentences)}." if sentences else ""
