"""The paper's tables, as data (.csv, one figure a row) and for reading (.md, .tex)."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from sparring.params import BASELINE, CLEAN, CORRUPTIONS, EVALUATED_SPLITS, STRENGTHS, Attack, Params, Row

PAPER = Path(__file__).parent / "paper"
SPLIT_TITLES = {"test": "Test images", "heldout": "Held-out images"}
TRANSFER = (
    "Every stored attack was made against the pretrained net. `baseline` is that net, so its figures are white-box; "
    "for every other structure they are *transfer*: the attacker never saw the defended model. Against an attacker who "
    "aims at the defended model, its accuracy can be expected to be far lower than printed here."
)
INTERVALS = (
    "In brackets: 95 % Wilson intervals. They tell how much a figure could differ with other images, not with another "
    "training run."
)
RESTORED = (
    "The cells of the paper's Table 4 were put back in order by checking them against its Table 2; its baseline row is "
    "the doubtful one."
)


@dataclass(frozen=True)
class Table:
    """tidy: one figure a row.  wide: heading → the frame to read; the heading is empty where there is one frame."""

    name: str
    caption: str
    tidy: pd.DataFrame
    wide: dict[str, pd.DataFrame]
    notes: list[str]


def number(value: float | None, digits: int = 3) -> str:
    """A figure for reading; `-` for what is not known."""
    return "-" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def with_interval(value: float, low: float, high: float) -> str:
    """A figure with its interval, as in `0.841 [0.800, 0.875]`."""
    return "-" if math.isnan(value) else f"{number(value)} [{number(low)}, {number(high)}]"


def rows(frame: pd.DataFrame) -> Iterator[Any]:
    """The rows of a frame, their cells as attributes."""
    return iter(frame.itertuples())


def attack_title(params: Params, attack: str) -> str:
    """The attack's name, marked where nobody trained on it."""
    return f"{attack} (unseen)" if attack in params.unseen_attacks else attack


def grid(frame: pd.DataFrame) -> str:
    """A frame as a Markdown table; its cells are printed as they are."""
    text: str = frame.to_markdown(index=False, disable_numparse=True)
    return text


def intensity(params: Params, facts: pd.DataFrame) -> Table:
    """Table 1: what each attack is set to, and what it does to the source model.

    facts: from statistics.attack_facts.
    """
    paper = pd.read_csv(PAPER / "table1_intensity.csv").set_index("attack")["value"]
    attacks = {**params.attacks, **params.unseen_attacks}
    tidy = _full(facts, [EVALUATED_SPLITS, tuple(attacks)], ["split", "attack"])
    tidy.insert(2, "seen", tidy["attack"].isin(list(params.attacks)))
    tidy.insert(3, "method", [attacks[name].method for name in tidy["attack"]])
    tidy.insert(4, "parameters", [_arguments(attacks[name]) for name in tidy["attack"]])
    tidy.insert(5, "eps_stored", [_levels(attacks[name].linf) for name in tidy["attack"]])
    tidy["paper"] = tidy["attack"].map(paper)
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
                        "max Linf": _levels(row.linf_max) or "-",
                        "success as floats": number(row.success_float),
                        "rounded": number(row.success_rounded),
                        "as stored": with_interval(row.success, row.ci_low, row.ci_high),
                        "unchanged": f"{row.unchanged:.0f} of {row.images:.0f}",
                        "paper's intensity": "-" if math.isnan(row.paper) else f"{row.paper:g}",
                    }
                    for row in rows(tidy[tidy["split"] == split])
                ]
            )
            for split in EVALUATED_SPLITS
        },
        [
            "`success`: of the images that the pretrained net classifies correctly when clean, the share that it "
            "classifies wrongly: as the attack left them (floats), after mere rounding to 8 bits, and as stored. "
            "Minimal-norm attacks end right behind the boundary, so rounding undoes many; they are stored with the "
            "least change that still fools the net after rounding, unless `store.faithful` is false. " + INTERVALS,
            "`eps as stored`: the largest change of a pixel after rounding, floor(255 eps + 0.001)/255; two settings "
            "with the same value are the same radius. L2 and Linf are measured over all images of the split, with "
            "pixels in [0, 1]. `unchanged`: images that the attack left as they were; a detector is not expected to "
            "find them.",
            "The paper's intensity is the number that its Table 1 prints. It counts in the units of the authors' code, "
            "so it is no radius in pixels and not comparable from one attack to another.",
        ],
    )


def mixture(params: Params, accuracy: pd.DataFrame, differences: pd.DataFrame, notes: Sequence[str]) -> Table:
    """Table 2: accuracy on the mixture.

    accuracy: from statistics.accuracies by split and structure.  differences: to the baseline, with the same index and
    columns difference, difference_low, difference_high.  notes: what to say of the paper's column.
    """
    published = pd.read_csv(PAPER / "table2_mixture.csv")
    paper = published[published["adv_ratio"] == params.mixture.adv_ratio].set_index("structure")["accuracy"]
    structures = (BASELINE, *params.structures)
    tidy = _full(accuracy.join(differences), [EVALUATED_SPLITS, structures], ["split", "structure"])
    tidy.insert(2, "attack", "mixture")
    tidy["paper"] = tidy["structure"].map(paper)
    columns: dict[str, list[str]] = {"structure": list(structures)}
    for split in EVALUATED_SPLITS:
        rows = tidy[tidy["split"] == split]
        title = SPLIT_TITLES[split].lower()
        columns[title] = [with_interval(*row) for row in rows[["accuracy", "ci_low", "ci_high"]].to_numpy(float)]
        columns[f"minus {BASELINE}, {title}"] = [
            with_interval(*row) for row in rows[["difference", "difference_low", "difference_high"]].to_numpy(float)
        ]
    columns["paper"] = [number(value, 4) for value in tidy.loc[tidy["split"] == EVALUATED_SPLITS[0], "paper"]]
    return Table(
        "table2",
        f"Accuracy on a mixture with an adversarial share of {params.mixture.adv_ratio:g} "
        f"(white-box for {BASELINE}, transfer for the others).",
        tidy,
        {"": pd.DataFrame(columns)},
        [
            "The mixture is one fixed draw, the same for every structure: each image once, clean or under one of the "
            "seen attacks, evenly over classes and attacks. " + INTERVALS + " Differences are paired, image by image; "
            "their interval is Bonett and Price's.",
            TRANSFER,
            *notes,
        ],
    )


def ablation(params: Params, settings: dict[str, Row], facts: pd.DataFrame, notes: Sequence[str]) -> Table:
    """Table 3: detector and classifier by detector input, adversarial share and layers.

    facts: by split, row and mixture (own | fixed), with majority, detector_accuracy, detector_low, detector_high,
    auroc, accuracy, ci_low, ci_high and images.  notes: what to say of the paper's columns.
    """
    published = pd.read_csv(PAPER / "table3_ablation.csv").rename(
        columns={"detector_accuracy": "paper_detector_accuracy", "classification_accuracy": "paper"}
    )
    varied = pd.DataFrame([{"row": name, **row.model_dump()} for name, row in settings.items()])
    varied = varied.merge(published, on=list(Row.model_fields), how="left", validate="many_to_one")
    tidy = _full(facts, [EVALUATED_SPLITS, tuple(settings), ("own", "fixed")], ["split", "row", "mixture"])
    tidy = tidy.merge(varied, on="row", validate="many_to_one")
    tidy.insert(3, "mixture_ratio", tidy["adv_ratio"].where(tidy["mixture"] == "own", params.mixture.adv_ratio))
    for place, name in enumerate(Row.model_fields, 2):
        tidy.insert(place, name, tidy.pop(name))
    # The paper's figures are for each row's own share.
    tidy.loc[tidy["mixture"] == "fixed", ["paper_detector_accuracy", "paper"]] = math.nan
    wide = {}
    for split in EVALUATED_SPLITS:
        columns: dict[str, Any] = {}
        for kind, suffix in (("own", ""), ("fixed", f" at {params.mixture.adv_ratio:g}")):
            found = tidy[(tidy["split"] == split) & (tidy["mixture"] == kind)]
            if kind == "own":
                columns |= {"input": list(found["input"]), "share": [f"{share:g}" for share in found["adv_ratio"]]}
                columns |= {"layers": [str(layers) for layers in found["layers"]]}
            columns[f"majority{suffix}"] = [number(value) for value in found["majority"]]
            columns[f"detector{suffix}"] = _intervals(found, "detector_accuracy", "detector_low", "detector_high")
            columns[f"AUROC{suffix}"] = [number(value) for value in found["auroc"]]
            columns[f"accuracy{suffix}"] = _intervals(found, "accuracy", "ci_low", "ci_high")
            if kind == "own":
                columns["paper, detector"] = [number(value, 4) for value in found["paper_detector_accuracy"]]
                columns["paper, accuracy"] = [number(value, 4) for value in found["paper"]]
        wide[SPLIT_TITLES[split]] = pd.DataFrame(columns)
    return Table(
        "table3",
        "The detector's accuracy and the classifier's, by detector input, adversarial share and layers (transfer).",
        tidy,
        wide,
        [
            "Each row is trained with its own adversarial share and measured on a mixture with that share, as in the "
            f"paper, and on the mixture of Table 2, with {params.mixture.adv_ratio:g}, on which the rows can be "
            "compared. `majority` is what always giving the commoner answer would score as a detector; an image that "
            "its attack left unchanged counts as clean. " + INTERVALS + " AUROC is no share and has no such interval.",
            "Every stored attack was made against the pretrained net, so all these figures are *transfer*: the "
            "attacker never saw the defended models. Against one who aims at them, their accuracy can be expected to "
            "be far lower than printed here.",
            *notes,
        ],
    )


def per_attack(params: Params, accuracy: pd.DataFrame, notes: Sequence[str]) -> Table:
    """Table 4: accuracy on the clean images and under each attack alone.

    accuracy: from statistics.accuracies by split, structure and attack.  notes: what to say of the paper's columns.
    """
    paper = pd.read_csv(PAPER / "table4_per_attack.csv").melt("structure", var_name="attack", value_name="paper")
    structures = (BASELINE, *params.structures)
    attacks = (CLEAN, *params.attacks, *params.unseen_attacks)
    tidy = _full(accuracy, [EVALUATED_SPLITS, structures, attacks], ["split", "structure", "attack"])
    tidy.insert(3, "seen", ~tidy["attack"].isin(list(params.unseen_attacks)))
    tidy = tidy.merge(paper, on=["structure", "attack"], how="left", validate="many_to_one")
    wide = {}
    for split in EVALUATED_SPLITS:
        columns = {"attack": [attack_title(params, attack) for attack in attacks]}
        for structure in structures:
            found = tidy[(tidy["split"] == split) & (tidy["structure"] == structure)]
            columns[structure] = _intervals(found, "accuracy", "ci_low", "ci_high")
            if found["paper"].notna().any():
                columns[f"{structure}, paper"] = [number(value, 4) for value in found["paper"]]
        wide[SPLIT_TITLES[split]] = pd.DataFrame(columns)
    return Table(
        "table4",
        f"Accuracy on the clean images and under each stored attack alone (white-box for {BASELINE}, "
        "transfer for the others).",
        tidy,
        wide,
        [INTERVALS, TRANSFER, *notes, RESTORED]
        + (["`unseen` attacks were kept from training: nobody learned from them."] if params.unseen_attacks else []),
    )


def corruptions(params: Params, each: pd.DataFrame, mean: pd.DataFrame) -> Table:
    """Accuracy on corrupted held-out images.

    each: from statistics.accuracies by structure, corruption and strength (clean: 0).  mean: the same by structure and
    corruption, over the strengths, with `all` for all corruptions.
    """
    structures = (BASELINE, *params.structures)
    kinds = [(CLEAN, 0), *((name, strength) for name in CORRUPTIONS for strength in STRENGTHS)]
    index = [(structure, *kind) for structure in structures for kind in kinds]
    tidy = each.reindex(pd.MultiIndex.from_tuples(index, names=["structure", "corruption", "strength"])).reset_index()
    names = [CLEAN, *CORRUPTIONS, "all"]
    means = _full(mean, [structures, names], ["structure", "corruption"])
    columns: dict[str, list[str]] = {"corruption": names}
    for structure in structures:
        columns[structure] = _intervals(means[means["structure"] == structure], "accuracy", "ci_low", "ci_high")
    wide = {"Mean over the strengths": pd.DataFrame(columns)}
    for structure in structures:
        found = tidy[(tidy["structure"] == structure) & (tidy["strength"] > 0)]
        by_strength = {str(strength): found[found["strength"] == strength] for strength in STRENGTHS}
        cells = {name: _intervals(rows, "accuracy", "ci_low", "ci_high") for name, rows in by_strength.items()}
        wide[structure] = pd.DataFrame({"corruption": list(CORRUPTIONS), **cells})
    return Table(
        "corruptions",
        "Accuracy on the held-out images under common corruptions of five strengths.",
        tidy,
        wide,
        [
            "In the manner of Hendrycks and Dietterich (2019, arXiv 1903.12261); docs/method.md has the strengths. "
            "Nobody trained on them, except that the attack `gaussian` is noise too. The mean's interval counts each "
            "image once, as its corrupted versions are no new images. " + INTERVALS
        ],
    )


def leave_one_out(params: Params, facts: pd.DataFrame) -> Table:
    """Accuracy under each attack of structures trained with all attacks and without that one.

    facts: by split, attack and structure, with with_accuracy, with_low, with_high, without_accuracy, without_low,
    without_high, difference, difference_low, difference_high, more, less, p and images.
    """
    structures = [name for name, structure in params.structures.items() if structure.stored]
    tidy = _full(facts, [EVALUATED_SPLITS, tuple(params.attacks), structures], ["split", "attack", "structure"])
    wide = {}
    for split in EVALUATED_SPLITS:
        found = tidy[tidy["split"] == split]
        wide[SPLIT_TITLES[split]] = pd.DataFrame(
            {
                "attack": list(found["attack"]),
                "structure": list(found["structure"]),
                "trained with it": _intervals(found, "with_accuracy", "with_low", "with_high"),
                "trained without it": _intervals(found, "without_accuracy", "without_low", "without_high"),
                "without minus with": _intervals(found, "difference", "difference_low", "difference_high"),
                "p": [number(p) for p in found["p"]],
            }
        )
    return Table(
        "leave_one_out",
        "Accuracy under an attack, by whether it was among those trained on (transfer).",
        tidy,
        wide,
        [
            "The two differ in nothing but the attack: weights, order and crops start from the same seeds. "
            + INTERVALS
            + " Differences are paired, image by image, with Bonett and Price's interval; p is that of McNemar's exact "
            f"test. With {len(params.attacks) * len(structures)} comparisons a split, some p below 0.05 is chance.",
            TRANSFER,
        ],
    )


def own_model(params: Params, accuracy: pd.DataFrame) -> pd.DataFrame:
    """A model's accuracy on the clean images and under each stored attack, for reading; a column a split.

    accuracy: from statistics.accuracies by split and attack.
    """
    attacks = (CLEAN, *params.attacks, *params.unseen_attacks)
    tidy = _full(accuracy, [EVALUATED_SPLITS, attacks], ["split", "attack"])
    columns = {"attack": [attack_title(params, attack) for attack in attacks]}
    for split in EVALUATED_SPLITS:
        columns[SPLIT_TITLES[split].lower()] = _intervals(tidy[tidy["split"] == split], "accuracy", "ci_low", "ci_high")
    return pd.DataFrame(columns)


def markdown(table: Table) -> str:
    """The caption, the frames to read and the notes."""
    number = table.name.removeprefix("table")
    parts = [f"**Table {number}.** {table.caption}" if number != table.name else f"**{table.caption}**"]
    for heading, frame in table.wide.items():
        parts += [f"*{heading}*"] if heading else []
        parts.append(grid(frame))
    return "\n\n".join([*parts, *table.notes]) + "\n"


def latex(table: Table) -> str:
    """One table environment a frame; needs the package booktabs."""
    parts = []
    for heading, frame in table.wide.items():
        caption = f"{table.caption} {heading}." if heading else table.caption
        label = "-".join(["tab:" + table.name, *heading.lower().split()[:1]])
        parts.append(frame.to_latex(index=False, escape=True, caption=caption, label=label))
    return "\n".join(parts)


def save(table: Table, folder: Path) -> None:
    """Write <name>.md, .csv and .tex below `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    table.tidy.to_csv(folder / f"{table.name}.csv", index=False, float_format="%.6g", lineterminator="\n")
    for ending, text in (("md", markdown(table)), ("tex", latex(table))):
        (folder / f"{table.name}.{ending}").write_text(text, encoding="utf-8", newline="\n")


def _full(frame: pd.DataFrame, levels: Sequence[Sequence[str]], names: list[str]) -> pd.DataFrame:
    """Every combination in its order, so that a split without images shows as empty cells and not as missing rows."""
    full = frame.reindex(pd.MultiIndex.from_product(levels, names=names)).reset_index()
    counts = full.columns.intersection(["images", "unchanged", "correct_before"])
    return full.fillna(dict.fromkeys(counts, 0)).astype(dict.fromkeys(counts, "int64"))


def _intervals(frame: pd.DataFrame, *columns: str) -> list[str]:
    return [with_interval(*row) for row in frame[list(columns)].to_numpy(float)]


def _arguments(attack: Attack) -> str:
    """The settings as params.yaml has them, in words."""
    return ", ".join(f"{name} {value}" for name, value in attack.arguments.items()) or "none"


def _levels(radius: float | None) -> str:
    """A radius in 8-bit levels, as the store keeps it; empty where there is none."""
    return "" if radius is None or math.isnan(radius) else f"{round(255 * radius)}/255"
