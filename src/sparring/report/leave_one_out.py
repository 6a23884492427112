"""Write the study that leaves one attack out of training: accuracy under it, trained with it and without."""

from typing import Any

import pandas as pd

from sparring import statistics
from sparring.layout import HERE, Layout
from sparring.params import Params
from sparring.params.names import CLEAN, EVALUATED_SPLITS
from sparring.params.variants import only
from sparring.report import read
from sparring.report.differences import chance_note, differences_note, probability, starred_intervals, trainings_of
from sparring.report.publish import publish
from sparring.report.table import INTERVALS, SPLIT_TITLES, TRANSFER, Table, full, intervals
from sparring.store import Images


def write(params: Params, layout: Layout = HERE) -> None:
    """Write the table from the predictions of structures trained with all attacks and without one, and print one line.

    Raises InputError where a file, or a part of it, is missing or does not fit the clean images.
    """
    clean = read.clean(layout)
    facts = [
        fact
        for attack in params.attacks
        for structure in only(params, attack).structures
        for fact in _facts(params, layout, attack, structure, clean)
    ]
    table = _table(params, pd.DataFrame(facts).set_index(["split", "attack", "structure"]))
    publish(table, layout.study_reports("leave_one_out"))
    print(f"leave one out: {len(params.attacks)} attacks", flush=True)


def _facts(
    params: Params, layout: Layout, attack: str, structure: str, clean: dict[str, Images]
) -> list[dict[str, Any]]:
    """Compare a structure trained with all attacks with the one trained without `attack`.

    Returns a dict for each split, with the index and columns that `_table` takes.
    """
    settings = only(params, attack)
    predictions = {
        "with": read.predictions(settings, layout, structure, clean),
        "without": read.predictions_without(settings, layout, attack, structure, clean),
    }
    rows = pd.concat([part.assign(structure=name) for name, part in predictions.items()], ignore_index=True)
    rows = rows[rows["attack"].isin([CLEAN, attack])]
    accuracy = statistics.accuracies(rows, ["split", "attack", "structure"]).to_dict("index")
    compared = statistics.comparisons(rows, ("without", "with"), ["split", "attack"]).to_dict("index")
    facts = []
    for split in rows["split"].unique():
        fact: dict[str, Any] = {"split": split, "attack": attack, "structure": structure}
        for name in predictions:
            row = accuracy[(split, attack, name)]
            fact |= {f"{name}_accuracy": row["accuracy"], f"{name}_low": row["ci_low"], f"{name}_high": row["ci_high"]}
            fact[f"{name}_sd"] = row["sd"]
        attacked, on_clean = (compared[(split, version, "without", "with")] for version in (attack, CLEAN))
        fact |= {name: attacked[name] for name in ("more", "less", "p", "trainings", "images")}
        for name, difference in (("difference", attacked), ("clean", on_clean)):
            fact |= {name: difference["difference"], f"{name}_side": difference["side"]}
            fact |= {f"{name}_{end}": difference[f"difference_{end}"] for end in ("low", "high", "sd")}
        facts.append(fact)
    return facts


def _table(params: Params, facts: pd.DataFrame) -> Table:
    """Return the table of accuracies under each attack, of structures trained with all attacks and without that one.

    facts: index split, attack and structure; columns with_accuracy, with_low, with_high, with_sd, and such columns
    without_…; DIFFERENCE and difference_side under the attack, and such columns clean_… on clean images; more, less, p,
    trainings and images.
    """
    structures = [name for name, structure in params.structures.items() if structure.stored]
    count = trainings_of(facts)
    tidy = full(facts, [EVALUATED_SPLITS, tuple(params.attacks), structures], ["split", "attack", "structure"])
    wide = {}
    for split in EVALUATED_SPLITS:
        rows = tidy[tidy["split"] == split]
        wide[SPLIT_TITLES[split]] = pd.DataFrame(
            {
                "attack": list(rows["attack"]),
                "structure": list(rows["structure"]),
                "trained with it": intervals(rows, "with_accuracy", "with_low", "with_high", "with_sd"),
                "trained without it": intervals(rows, "without_accuracy", "without_low", "without_high", "without_sd"),
                "without minus with": starred_intervals(rows, "difference"),
                "p": [probability(p) for p in rows["p"]],
                "the same two on clean images": starred_intervals(rows, "clean"),
            }
        )
    return Table(
        "leave_one_out",
        "Accuracy under an attack, by whether it was among those trained on (transfer).",
        tidy,
        wide,
        [
            "The two differ in nothing but the attack: weights, order and crops start from the same seeds. "
            + f"{INTERVALS} {differences_note(count)} p is that of McNemar's exact test, over images alone. With "
            f"{len(params.attacks) * len(structures)} comparisons a split, some p are below 0.05 by chance, and some "
            "differences have a star.",
            f"`*`: beyond chance. {chance_note(count)} Two trainings also differ on all images alike. The last column "
            "has the same two's difference on clean images: what is as large there is hardly the attack's doing.",
            TRANSFER,
        ],
    )
