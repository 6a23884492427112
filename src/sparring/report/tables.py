"""The paper's tables, as data (.csv, one figure a row) and for reading (.md, .tex)."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from sparring import statistics
from sparring.params import Params
from sparring.params.attacks import Attack
from sparring.params.names import BASELINE, CLEAN, CORRUPTIONS, EVALUATED_SPLITS, KNOWN_DETECTORS, MIXTURE, STRENGTHS
from sparring.params.variants import Row
from sparring.report import escape

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
    "the doubtful one. Its figures fit pixels that were cut down to integers and stored without loss (recomputed: "
    "DeepFool .253, C&W .159), not the JPEG files that its code writes (.631, .562). Its mixture takes classes 0 to 4 "
    "clean and 5 to 9 attacked, so Table 2 is no mean of Table 4."
)
ASSUMED_SPREAD = (
    "With one training of each structure, how far trainings lie apart is unknown. It is taken from the three trainings "
    "of the profile `cifar_small`, where the difference between two structures on the mixture had a standard deviation "
    f"of {statistics.SPREAD:.3f} (docs/results/cifar_small/seeds.md). Other data and nets may have less or more; "
    "several `seeds` in params.yaml measure it."
)


ACCURACY = ("accuracy", "ci_low", "ci_high", "sd")
DIFFERENCE = ("difference", "difference_low", "difference_high", "difference_sd")
DETECTED = ("detector_accuracy", "detector_low", "detector_high", "detector_sd")


@dataclass(frozen=True)
class Table:
    """tidy: one figure a row.  wide: heading → the frame to read; the heading is empty where there is one frame."""

    name: str
    caption: str
    tidy: pd.DataFrame
    wide: dict[str, pd.DataFrame]
    notes: list[str] = field(default_factory=list)

    @property
    def label(self) -> str:
        """`Table 2.` where the paper has one of that number."""
        number = self.name.removeprefix("table")
        return f"Table {number}." if number.isdigit() else ""


def plain(name: str, caption: str, frame: pd.DataFrame, notes: Sequence[str] = ()) -> Table:
    """A table whose one frame is data and reading at once; its cells are printed as they are."""
    return Table(name, caption, frame, {"": frame.astype(str)}, list(notes))


def number(value: float | None, digits: int = 3) -> str:
    """A figure for reading; `-` for what is not known."""
    return "-" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def with_interval(value: float, low: float, high: float, sd: float = math.nan) -> str:
    """A figure with its interval, as in `0.841 [0.800, 0.875]`; over several trainings `0.841 ± 0.006 [0.800, 0.875]`,
    their standard deviation."""
    spread = "" if math.isnan(sd) else f" ± {number(sd)}"
    return "-" if math.isnan(value) else f"{number(value)}{spread} [{number(low)}, {number(high)}]"


def signed(value: float, *interval: float) -> str:
    """A difference for reading, as in `+0.169`, with its interval as in `+0.205 [+0.161, +0.247]`."""
    ends = f" [{', '.join(f'{end:+.3f}' for end in interval)}]" if interval else ""
    return "-" if math.isnan(value) else f"{value:+.3f}{ends}"


def probability(p: float) -> str:
    """A p for reading, as in `0.035` and `<0.001`."""
    return "<0.001" if p < 0.0005 else number(p)


def starred(text: str, side: float) -> str:
    """A difference, or its p, with a star where the difference lies on a side of zero beyond chance."""
    return f"{text} *" if side in (1, -1) else text


def trainings(compared: pd.DataFrame) -> int:
    """How many trainings of a structure the differences are from; 1 where nothing is compared."""
    counts = compared["trainings"].dropna()
    return int(counts.max()) if len(counts) else 1


def differences_note(count: int) -> str:
    """What the intervals of differences hold for.  count: from `trainings`."""
    if count == 1:
        return (
            "Differences are paired, image by image; their 95 % interval is Bonett and Price's, over images alone: it "
            "tells nothing of another training."
        )
    return (
        f"Differences are paired, image by image and seed by seed; their 95 % interval holds for other trainings and "
        f"other images: the half-widths of Student's t-interval over the {count} trainings and of Bonett and Price's "
        "over images, added in squares. There is one pretrained net, and no interval holds for another. *Within ±1 "
        "point* is said where all of the interval lies there."
    )


def chance_note(count: int) -> str:
    """What `beyond chance` says of a difference.  count: from `trainings`."""
    if count > 1:
        return "*Beyond chance*: the 95 % interval of the difference, over trainings and images, does not contain zero."
    return "*Beyond chance*: more than other images and another training would make together. " + ASSUMED_SPREAD


def rows(frame: pd.DataFrame) -> Iterator[Any]:
    """The rows of a frame, their cells as attributes."""
    return iter(frame.itertuples())


def attack_title(params: Params, attack: str) -> str:
    """The attack's name, marked where nobody trained on it."""
    return f"{attack} (unseen)" if attack in params.unseen_attacks else attack


def grid(frame: pd.DataFrame) -> str:
    """A frame as a Markdown table that shows headings and cells as they are."""
    text: str = _escaped(frame, escape.markdown).to_markdown(index=False, disable_numparse=True)
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
    columns DIFFERENCE and trainings.  notes: what to say of the paper's column.
    """
    paper = paper_mixture(params)
    structures = list(params.structures)
    tidy = _full(accuracy.join(differences), [EVALUATED_SPLITS, structures], ["split", "structure"])
    tidy.insert(2, "attack", MIXTURE)
    tidy["paper"] = tidy["structure"].map(paper)
    columns: dict[str, list[str]] = {"structure": list(structures)}
    for split in EVALUATED_SPLITS:
        rows = tidy[tidy["split"] == split]
        title = SPLIT_TITLES[split].lower()
        columns[title] = _intervals(rows, *ACCURACY)
        columns[f"minus {BASELINE}, {title}"] = _intervals(rows, *DIFFERENCE)
    columns["paper"] = [number(value, 4) for value in tidy.loc[tidy["split"] == EVALUATED_SPLITS[0], "paper"]]
    return Table(
        "table2",
        f"Accuracy on a mixture with an adversarial share of {params.mixture.adv_ratio:g} "
        f"(white-box for {BASELINE}, transfer for the others).",
        tidy,
        {"": pd.DataFrame(columns)},
        [
            "The mixture is one fixed draw, the same for every structure: each image once, clean or under one of the "
            "seen attacks, evenly over classes and attacks. " + INTERVALS + " " + differences_note(trainings(tidy)),
            TRANSFER,
            *notes,
        ],
    )


def ablation(params: Params, settings: dict[str, Row], facts: pd.DataFrame, notes: Sequence[str]) -> Table:
    """Table 3: detector and classifier by detector input, adversarial share and layers.

    facts: by split, row and mixture (own | fixed), with majority, detector_accuracy, detector_low, detector_high,
    detector_sd, auroc, accuracy, ci_low, ci_high, sd and images.  notes: what to say of the paper's columns.
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
            columns[f"detector{suffix}"] = _intervals(found, *DETECTED)
            columns[f"AUROC{suffix}"] = [number(value) for value in found["auroc"]]
            columns[f"accuracy{suffix}"] = _intervals(found, *ACCURACY)
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
            _rows_note(len(params.seeds)),
            "Every stored attack was made against the pretrained net, so all these figures are *transfer*: the "
            "attacker never saw the defended models. Against one who aims at them, their accuracy can be expected to "
            "be far lower than printed here.",
            *notes,
        ],
    )


def _rows_note(count: int) -> str:
    if count == 1:
        return f"Rows differ by chance too; no interval here compares two of them. {ASSUMED_SPREAD}"
    return (
        f"Rows differ by chance too; no interval here compares two of them. ± is the standard deviation over {count} "
        "trainings."
    )


METHOD_TITLES = {"mahalanobis": "Mahalanobis", "squeezing": "feature squeezing"}
OUTCOMES = ("succeeded", "failed", "wrong before")
AIMED = {"none": "none", "unaware": "sees the classifier alone", "adaptive": "sees both"}


def detectors(params: Params, facts: pd.DataFrame, scores: pd.DataFrame, pairs: pd.DataFrame) -> list[Table]:
    """Four tables: each attack found, matched pairs, benign changes accused, and attackers who aim at the detector.

    facts: the tidy frame of Table 1.  scores: from statistics.accuse, with attrs `fitted` (what the known detectors
    were fitted on).  pairs: from statistics.matched.
    """
    methods = tuple(scores["method"].unique())
    own = tuple(method for method in methods if method not in KNOWN_DETECTORS)
    entries = {**params.attacks, **params.unseen_attacks}
    real = tuple(name for name, attack in entries.items() if not attack.noise)
    attacks = (*real, statistics.ALL, *(name for name in entries if name not in real))
    changes = (CLEAN, *dict.fromkeys(scores.loc[scores["kind"] == "benign", "attack"]))
    judges = scores.loc[scores["split"] == "validation", "index"].nunique()
    by = ["split", "attack", "method"]
    found = _full(statistics.separation(pairs), [EVALUATED_SPLITS, attacks, methods], by)
    found = found.merge(
        facts[["split", "attack", "unchanged"]], on=["split", "attack"], how="left", validate="many_to_one"
    )
    right = _full(statistics.pair_accuracy(pairs), [EVALUATED_SPLITS, attacks, methods, OUTCOMES], [*by, "outcome"])
    false = _full(statistics.false_positives(scores), [EVALUATED_SPLITS, changes, methods], by)
    joint = _full(statistics.joint_robustness(scores), [EVALUATED_SPLITS, tuple(AIMED), own], by)
    wide: dict[str, dict[str, pd.DataFrame]] = {"attacks": {}, "pairs": {}, "benign": {}, "joint": {}}
    for split, title in SPLIT_TITLES.items():
        first = found[(found["split"] == split) & (found["method"] == methods[0])]
        names = [
            attack_title(params, name) + (" (noise)" if name in entries and entries[name].noise else "")
            for name in attacks
        ]
        columns: dict[str, list[str]] = {
            "attack": names,
            "images": [str(count) for count in first["images"]],
            "unchanged": [number(count, 0) for count in first["unchanged"]],
        }
        paired, accused = {"attack": names}, {"images": list(changes)}
        for method in methods:
            name = METHOD_TITLES.get(method, method)
            part = found[(found["split"] == split) & (found["method"] == method)]
            columns[f"{name}: AUROC"] = _intervals(part, "auroc", "auroc_low", "auroc_high", "auroc_sd")
            for rate, words in (("05", "5 %"), ("01", "1 %")):
                columns[f"{name}: found at {words}"] = [number(share) for share in part[f"tpr_{rate}"]]
            for outcome in OUTCOMES[:2]:
                part = right[(right["split"] == split) & (right["method"] == method) & (right["outcome"] == outcome)]
                if method == methods[0]:
                    paired[f"images, {outcome}"] = [str(count) for count in part["images"]]
                paired[f"{name}: {outcome}"] = _intervals(part, *ACCURACY)
            part = false[(false["split"] == split) & (false["method"] == method)]
            for rate, words in (("05", "5 %"), ("01", "1 %")):
                rates = _intervals(part, *(f"fpr_{rate}{end}" for end in ("", "_low", "_high", "_sd")))
                accused[f"{name}: accused at {words}"] = rates
        part = joint[joint["split"] == split].sort_values("method", kind="stable", key=lambda rows: rows.map(own.index))
        aimed = {
            "structure": list(part["method"]),
            "attacker": [AIMED[name] for name in part["attack"]],
            "images": [str(count) for count in part["images"]],
            "classified right": [number(share) for share in part["right"]],
            "accused": [number(share) for share in part["accused"]],
            "right or accused": _intervals(part, "joint", "joint_low", "joint_high", "joint_sd"),
        }
        for name, frame in zip(wide, (columns, paired, accused, aimed), strict=True):
            wide[name][title] = pd.DataFrame(frame)
    return [
        Table(
            "detector_attacks",
            "How well detectors find each attack alone, beside two known ones.",
            found,
            wide["attacks"],
            _found_notes(scores),
        ),
        Table(
            "detector_pairs",
            "Accuracy of detectors on pairs of a clean image and what an attack made of it.",
            right,
            wide["pairs"],
            [
                "Half of the images are clean, so guessing is right in 0.5. An image is called adversarial above the "
                "threshold of 5 %. *Succeeded*: the pretrained net went from right to wrong; *failed*: it stayed "
                "right; images that it got wrong before are in neither. " + INTERVALS
            ],
        ),
        Table(
            "detector_benign",
            "Clean and benignly changed images that detectors accuse.",
            false,
            wide["benign"],
            [
                "The changes are common corruptions of strength 2. The row of clean images "
                + (
                    f"tells how well the thresholds, set on {judges} validation images, hold on others. "
                    if judges
                    else "keeps the rate by construction: there are no validation images to set thresholds on. "
                )
                + INTERVALS
            ],
        ),
        Table(
            "detector_joint",
            "Structures with a detector against who aims at them.",
            joint,
            wide["joint"],
            [
                "*Right or accused* is the joint robust accuracy at 5 %: the share of images that are still classified "
                "right, or detected. Both attackers run PGD in L∞ on the structure's own net "
                f"(eps {params.detection.eps:g}, {params.detection.steps} steps a run); nothing is rounded to 8 bits. "
                "The one who sees both, pretrained net and detector too, lowers the detector's score along with the "
                "classifier's accuracy and keeps, of all wrongly classified images on the way, the one with the lowest "
                "score. " + INTERVALS
            ],
        ),
    ]


def _found_notes(scores: pd.DataFrame) -> list[str]:
    judges = scores.loc[scores["split"] == "validation", "index"].nunique()
    fitted = scores.attrs["fitted"]
    return [
        "Each attack is measured on pairs: the images that it changed, clean and attacked; those that it left "
        f"unchanged are left out and counted. *{statistics.ALL.capitalize()}*: the pairs of all real attacks together; "
        "noise aims at nothing and stands apart. AUROC: 95 % intervals of DeLong for pairs. *Found at 5 % (1 %)*: the "
        "share of attacked images above the threshold above which at most 5 % (1 %) of the clean "
        + (
            f"validation images ({judges}) lie; the table of benign changes tells the rate on other clean images."
            if judges
            else "images of the same split lie; there are no validation images, so these shares are a little too high."
        ),
        f"Mahalanobis (Lee et al., 2018) and feature squeezing (Xu et al., 2018; {fitted['bits']} bits, median "
        f"{fitted['median']} × {fitted['median']}) look at the pretrained net too. The Gaussians were fitted on "
        f"{fitted['gaussians']} clean training images; the regression, and the choice of squeezers, on {fitted['fit']} "
        f"{'training' if fitted['split'] == 'train' else 'validation'} images and the seen attacks on them.",
    ]


def per_attack(params: Params, accuracy: pd.DataFrame, notes: Sequence[str]) -> Table:
    """Table 4: accuracy on the clean images and under each attack alone.

    accuracy: from statistics.accuracies by split, structure and attack.  notes: what to say of the paper's columns.
    """
    paper = pd.read_csv(PAPER / "table4_per_attack.csv").melt("structure", var_name="attack", value_name="paper")
    structures = list(params.structures)
    attacks = (CLEAN, *params.attacks, *params.unseen_attacks)
    tidy = _full(accuracy, [EVALUATED_SPLITS, structures, attacks], ["split", "structure", "attack"])
    tidy.insert(3, "seen", ~tidy["attack"].isin(list(params.unseen_attacks)))
    tidy = tidy.merge(paper, on=["structure", "attack"], how="left", validate="many_to_one")
    wide = {}
    for split in EVALUATED_SPLITS:
        columns = {"attack": [attack_title(params, attack) for attack in attacks]}
        for structure in structures:
            found = tidy[(tidy["split"] == split) & (tidy["structure"] == structure)]
            columns[structure] = _intervals(found, *ACCURACY)
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
    structures = list(params.structures)
    kinds = [(CLEAN, 0), *((name, strength) for name in CORRUPTIONS for strength in STRENGTHS)]
    index = [(structure, *kind) for structure in structures for kind in kinds]
    tidy = each.reindex(pd.MultiIndex.from_tuples(index, names=["structure", "corruption", "strength"])).reset_index()
    names = [CLEAN, *CORRUPTIONS, "all"]
    means = _full(mean, [structures, names], ["structure", "corruption"])
    columns: dict[str, list[str]] = {"corruption": names}
    for structure in structures:
        columns[structure] = _intervals(means[means["structure"] == structure], *ACCURACY)
    wide = {"Mean over the strengths": pd.DataFrame(columns)}
    for structure in structures:
        found = tidy[(tidy["structure"] == structure) & (tidy["strength"] > 0)]
        by_strength = {str(strength): found[found["strength"] == strength] for strength in STRENGTHS}
        cells = {name: _intervals(rows, *ACCURACY) for name, rows in by_strength.items()}
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

    facts: by split, attack and structure, with with_accuracy, with_low, with_high, with_sd, the same of without,
    DIFFERENCE, difference_side and the same of clean (the two on clean images), more, less, p, trainings and images.
    """
    structures = [name for name, structure in params.structures.items() if structure.stored]
    count = trainings(facts)
    tidy = _full(facts, [EVALUATED_SPLITS, tuple(params.attacks), structures], ["split", "attack", "structure"])
    wide = {}
    for split in EVALUATED_SPLITS:
        found = tidy[tidy["split"] == split]
        wide[SPLIT_TITLES[split]] = pd.DataFrame(
            {
                "attack": list(found["attack"]),
                "structure": list(found["structure"]),
                "trained with it": _intervals(found, "with_accuracy", "with_low", "with_high", "with_sd"),
                "trained without it": _intervals(
                    found, "without_accuracy", "without_low", "without_high", "without_sd"
                ),
                "without minus with": _starred_intervals(found, "difference"),
                "p": [probability(p) for p in found["p"]],
                "the same two on clean images": _starred_intervals(found, "clean"),
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


def own_model(params: Params, accuracy: pd.DataFrame) -> pd.DataFrame:
    """A model's accuracy on the clean images and under each stored attack, for reading; a column a split.

    accuracy: from statistics.accuracies by split and attack.
    """
    attacks = (CLEAN, *params.attacks, *params.unseen_attacks)
    tidy = _full(accuracy, [EVALUATED_SPLITS, attacks], ["split", "attack"])
    columns = {"attack": [attack_title(params, attack) for attack in attacks]}
    for split in EVALUATED_SPLITS:
        columns[SPLIT_TITLES[split].lower()] = _intervals(tidy[tidy["split"] == split], *ACCURACY)
    return pd.DataFrame(columns)


def mcnemar(params: Params, name: str, compared: pd.DataFrame, splits: Sequence[str] = EVALUATED_SPLITS) -> list[Table]:
    """McNemar's exact test between any two structures, on the mixture, on the clean images and under each attack, or in
    the worst cases; no table where nothing is compared.

    compared: from statistics.comparisons by split and attack, with what `name` is beside.
    """
    if compared.empty:
        return []
    pairs = [(later, first) for first, later in itertools.combinations(params.structures, 2)]
    attacks = list(dict.fromkeys(compared.index.get_level_values("attack")))
    index = [(*key, *pair) for key in itertools.product(splits, attacks) for pair in pairs]
    names = ["split", "attack", "structure", "other"]
    tidy = compared.reindex(pd.MultiIndex.from_tuples(index, names=names)).reset_index()
    counts = ["more", "less", "images", "side", "equivalent", "trainings"]
    tidy = tidy.fillna(dict.fromkeys(counts, 0)).astype(dict.fromkeys(counts, "int64"))
    wide, tests = {}, 0
    for split in splits:
        here = tidy[tidy["split"] == split]
        tests = max(tests, int(here["p"].notna().sum()))
        found = here.set_index(["attack", "structure", "other"]).to_dict("index")
        columns = {"structures": [f"{structure}, {other}" for structure, other in pairs]}
        for attack in attacks:
            cells = [found[(attack, *pair)] for pair in pairs]
            columns[attack if attack == MIXTURE else attack_title(params, attack)] = [
                starred(f"{probability(cell['p'])} ({cell['more']} : {cell['less']})", cell["side"])
                if cell["images"]
                else "-"
                for cell in cells
            ]
        wide[SPLIT_TITLES[split]] = pd.DataFrame(columns)
    if attacks == [MIXTURE]:
        both = [frame.rename(columns={MIXTURE: title.lower()}) for title, frame in wide.items()]
        wide = {"": both[0].join(both[1].drop(columns="structures"))}
    caption = "McNemar's exact test between any two structures on the same images."
    return [Table(name, caption, tidy, wide, _mcnemar_notes(trainings(compared), tests))]


def _mcnemar_notes(count: int, tests: int) -> list[str]:
    bonferroni = (
        f" These are {tests} tests for the same images: one in twenty falls below 0.05 by chance, and one that is "
        f"below {0.05 / tests:.2g} counts for these nets whatever the others say (Bonferroni)."
    )
    return [
        "p, and in brackets how many images only the first structure gets right : only the second (of several "
        "trainings: the one in a larger share of its trainings than the other). p is how probable a split at least as "
        "uneven is where neither is better. It counts images alone, so it is about these very nets: two trainings of "
        "one structure can have a small p too." + (bonferroni if tests > 1 else ""),
        f"`*`: the accuracies differ beyond chance. {chance_note(count)}"
        + (f" {differences_note(count)} The .csv has them." if count > 1 else ""),
    ]


def beside_paper(params: Params, mixture: pd.DataFrame, single: pd.DataFrame, notes: Sequence[str]) -> Table:
    """The figures of the paper's Tables 2 and 4 that this run has too, beside ours.

    mixture, single: the tidy frames of Tables 2 and 4.  notes: what to say of the paper's figures.
    Its tidy frame has minus_paper (ours minus the paper's) and within (whether the paper's lies within our interval).
    """
    both = pd.concat([mixture.assign(table=2), single.assign(table=4)], ignore_index=True)
    columns = ["table", "split", "structure", "attack", *ACCURACY, "paper"]
    tidy = both.loc[both["paper"].notna() & both["accuracy"].notna(), columns].reset_index(drop=True)
    tidy["minus_paper"] = tidy["accuracy"] - tidy["paper"]
    tidy["within"] = (tidy["ci_low"] <= tidy["paper"]) & (tidy["paper"] <= tidy["ci_high"])
    wide = {}
    for split in EVALUATED_SPLITS:
        found = tidy[tidy["split"] == split]
        if len(found):
            wide[SPLIT_TITLES[split]] = pd.DataFrame(
                {
                    "table": [str(table) for table in found["table"]],
                    "structure": list(found["structure"]),
                    "images": list(found["attack"]),
                    "paper": [number(value, 4) for value in found["paper"]],
                    "here": _intervals(found, *ACCURACY),
                    "here minus paper": [signed(value) for value in found["minus_paper"]],
                    "paper within our interval": ["yes" if within else "no" for within in found["within"]],
                }
            )
    return Table("paper", "The paper's Tables 2 and 4 beside ours.", tidy, wide, [INTERVALS, *notes])


def paper_claims(params: Params, compared: pd.DataFrame) -> Table:
    """The differences between structures that the paper's Tables 2 and 4 state, and what this run says of each.

    compared: from statistics.comparisons by split and attack, of the mixture (attack `mixture`) and of each attack.
    Its tidy frame has one row a claim and split, with `verdict`, one of `verdicts`.
    """
    figures = pd.concat(
        [
            paper_mixture(params).rename("paper").reset_index().assign(attack=MIXTURE),
            pd.read_csv(PAPER / "table4_per_attack.csv").melt("structure", var_name="attack", value_name="paper"),
        ]
    ).set_index(["attack", "structure"])["paper"]
    claims: list[dict[Any, Any]] = []
    attacks = [name for name in (MIXTURE, CLEAN, *params.attacks) if name in figures.index.get_level_values("attack")]
    pairs = [(later, first) for first, later in itertools.combinations((BASELINE, "adv", "ours"), 2)]
    ours = compared.to_dict("index")
    for attack, (structure, other), split in itertools.product(attacks, pairs, EVALUATED_SPLITS):
        if (split, attack, structure, other) in ours:
            paper = round(float(figures[(attack, structure)] - figures[(attack, other)]), 4)
            found = ours[(split, attack, structure, other)]
            claim = {"split": split, "attack": attack, "structure": structure, "other": other, "paper": paper}
            claims.append({**claim, **found, "verdict": _verdict(paper, found["side"], found["trainings"])})
    columns = ["split", "attack", "structure", "other", "paper", *DIFFERENCE]
    columns += ["p", "images", "trainings", "equivalent", "verdict"]
    tidy = pd.DataFrame(claims, columns=columns)
    wide = {}
    for split in EVALUATED_SPLITS:
        shown = tidy[tidy["split"] == split]
        if len(shown):
            wide[SPLIT_TITLES[split]] = pd.DataFrame(
                {
                    "difference": [f"{row.structure} minus {row.other}" for row in rows(shown)],
                    "images": list(shown["attack"]),
                    "paper": [signed(value) for value in shown["paper"]],
                    "here": [signed(row.difference, row.difference_low, row.difference_high) for row in rows(shown)],
                    "McNemar's p": [probability(p) for p in shown["p"]],
                    "verdict": [row.verdict + ", within ±1 point" * row.equivalent for row in rows(shown)],
                }
            )
    return Table(
        "claims",
        "The differences between structures in the paper, and here.",
        tidy,
        wide,
        _claims_notes(trainings(tidy)),
    )


def verdicts(count: int) -> tuple[str, str, str]:
    """What is said of a difference in the paper: ours has its sign beyond chance, chance could have made ours, ours has
    the other sign beyond chance.  count: of the trainings that ours is from; one does not make a reproduction."""
    if count == 1:
        return "on the paper's side", "not told apart", "on the other side"
    return "reproduced", "not shown", "contradicted"


def _verdict(paper: float, side: int, count: int) -> str:
    same, neither, opposite = verdicts(count)
    if not side:
        return neither
    return same if (side > 0) == (paper > 0) else opposite


def _claims_notes(count: int) -> list[str]:
    same, neither, opposite = (f"*{word.capitalize()}*" for word in verdicts(count))
    return [
        f"{same}: our difference has the sign of the paper's, beyond chance and whatever its size; {opposite}: it has "
        f"the other sign, beyond chance; {neither}: chance could have made it. With this many differences, one or "
        f"another is beyond chance by chance. {chance_note(count)}",
        f"{differences_note(count)} McNemar's p is over images alone.",
    ]


def paper_mixture(params: Params) -> "pd.Series[Any]":
    """The paper's accuracy by structure on a mixture like ours; empty where it has none with that share."""
    published = pd.read_csv(PAPER / "table2_mixture.csv")
    return published[published["adv_ratio"] == params.mixture.adv_ratio].set_index("structure")["accuracy"]


def markdown(table: Table) -> str:
    """The caption, the frames to read and the notes."""
    parts = [f"**{table.label}** {table.caption}" if table.label else table.caption]
    for heading, frame in table.wide.items():
        parts += [f"*{escape.markdown(heading)}*"] if heading else []
        parts.append(grid(frame))
    return "\n\n".join([*parts, *table.notes]) + "\n"


def latex(table: Table) -> str:
    """One table environment a frame; needs the package booktabs, and a font encoding with the letters (T1)."""
    parts = []
    for heading, frame in table.wide.items():
        caption = f"{table.caption} {heading}." if heading else table.caption
        label = "-".join(["tab:" + table.name, *heading.lower().split()[:1]])
        text = _escaped(frame, escape.latex)
        parts.append(text.to_latex(index=False, escape=False, caption=escape.latex(caption), label=label))
    return "\n".join(parts)


def _escaped(frame: pd.DataFrame, how: Callable[[str], str]) -> pd.DataFrame:
    return frame.astype(str).map(how).set_axis([how(str(name)) for name in frame.columns], axis=1)


def save(table: Table, folder: Path, tex: Path) -> None:
    """Write <name>.md and <name>.csv into `folder`, and <name>.tex into the folder `tex`."""
    for each in (folder, tex):
        each.mkdir(parents=True, exist_ok=True)
    table.tidy.to_csv(folder / f"{table.name}.csv", index=False, float_format="%.6g", lineterminator="\n")
    for path, text in ((folder / f"{table.name}.md", markdown(table)), (tex / f"{table.name}.tex", latex(table))):
        path.write_text(text, encoding="utf-8", newline="\n")


def _full(frame: pd.DataFrame, levels: Sequence[Sequence[str]], names: list[str]) -> pd.DataFrame:
    """Every combination in its order, so that a split without images shows as empty cells and not as missing rows."""
    full = frame.reindex(pd.MultiIndex.from_product(levels, names=names)).reset_index()
    counts = full.columns.intersection(["images", "unchanged", "correct_before"])
    return full.fillna(dict.fromkeys(counts, 0)).astype(dict.fromkeys(counts, "int64"))


def _intervals(frame: pd.DataFrame, *columns: str) -> list[str]:
    return [with_interval(*row) for row in frame[list(columns)].to_numpy(float)]


def _starred_intervals(frame: pd.DataFrame, name: str) -> list[str]:
    texts = _intervals(frame, name, f"{name}_low", f"{name}_high", f"{name}_sd")
    return [starred(text, side) for text, side in zip(texts, frame[f"{name}_side"], strict=True)]


def _arguments(attack: Attack) -> str:
    """The settings as params.yaml has them, in words."""
    return ", ".join(f"{name} {value}" for name, value in attack.arguments.items()) or "none"


def _levels(radius: float | None) -> str:
    """A radius in 8-bit levels, as the store keeps it; empty where there is none."""
    return "" if radius is None or math.isnan(radius) else f"{round(255 * radius)}/255"
