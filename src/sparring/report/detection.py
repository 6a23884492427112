"""Make the detector section's tables: single attacks, pairs of images, benign changes, attackers who aim at it."""

from dataclasses import dataclass
from typing import Any

import pandas as pd

from sparring import statistics
from sparring.params import Params
from sparring.params.names import CLEAN, EVALUATED_SPLITS, KNOWN_DETECTORS
from sparring.report import read
from sparring.report.results import Results
from sparring.report.table import ACCURACY, INTERVALS, SPLIT_TITLES, Table, attack_title, full, intervals, number

METHOD_TITLES = {"mahalanobis": "Mahalanobis", "squeezing": "feature squeezing"}
OUTCOMES = ("succeeded", "failed", "wrong before")
ATTACKERS = {"none": "none", "unaware": "sees the classifier alone", "adaptive": "sees both"}
RATES = {"05": "5 %", "01": "1 %"}
KEYS = ["split", "attack", "method"]


@dataclass(frozen=True)
class Scores:
    """The detectors' scores that the stage `detect` made.

    rows: from statistics.accuse.  pairs: from statistics.matched.  fitted: what the known detectors were fitted on.
    """

    params: Params
    rows: pd.DataFrame
    pairs: pd.DataFrame
    fitted: dict[str, Any]
    unchanged: pd.DataFrame  # split, attack and the number of images that the attack left unchanged

    @property
    def methods(self) -> dict[str, str]:
        """Return the titles of the detectors, those of structures and the known ones, by name."""
        return {name: METHOD_TITLES.get(name, name) for name in self.rows["method"].unique()}

    @property
    def attacks(self) -> dict[str, str]:
        """Return the titles of the attacks by name: real attacks, all of these together, then mere noise."""
        entries = {**self.params.attacks, **self.params.unseen_attacks}
        real = {name: attack_title(self.params, name) for name, attack in entries.items() if not attack.noise}
        noise = {name: attack_title(self.params, name) + " (noise)" for name in entries if name not in real}
        return {**real, statistics.ALL: statistics.ALL, **noise}

    @property
    def validation_images(self) -> int:
        """Count the validation images that the thresholds are set on."""
        return self.rows.loc[self.rows["split"] == "validation", "index"].nunique()


def scores(results: Results) -> Scores | None:
    """Read the scores; None where the stage `detect` was left out, or where no structure has a detector."""
    params = results.params
    names = [] if "detect" in results.left_out else results.detectors
    rows, fitted = read.scores(params, results.layout, names, results.clean)
    if rows.empty:
        return None
    rows = statistics.accuse(rows)
    noise = [name for name, attack in {**params.attacks, **params.unseen_attacks}.items() if attack.noise]
    pairs = statistics.matched(rows, results.stored, results.source_clean, noise)
    return Scores(params, rows, pairs, fitted, results.attack_facts[["split", "attack", "unchanged"]])


def tables(scores: Scores | None) -> list[Table]:
    """Return the tables on attacks, matched pairs, benign changes and attackers who aim at it; none without scores."""
    if scores is None:
        return []
    return [_attack_table(scores), _pair_table(scores), _benign_table(scores), _attacker_table(scores)]


def _attack_table(scores: Scores) -> Table:
    """Return the table of how well each detector tells images under each attack from clean ones."""
    tidy = full(
        statistics.separation(scores.pairs), [EVALUATED_SPLITS, list(scores.attacks), list(scores.methods)], KEYS
    )
    tidy = tidy.merge(scores.unchanged, on=["split", "attack"], how="left", validate="many_to_one")
    wide = {}
    for split, heading in SPLIT_TITLES.items():
        parts = dict(list(tidy[tidy["split"] == split].groupby("method", sort=False)))
        first = next(iter(parts.values()))
        columns: dict[str, list[str]] = {
            "attack": list(scores.attacks.values()),
            "images": [str(count) for count in first["images"]],
            "unchanged": [number(count, 0) for count in first["unchanged"]],
        }
        for method, title in scores.methods.items():
            columns[f"{title}: AUROC"] = intervals(parts[method], "auroc", "auroc_low", "auroc_high", "auroc_sd")
            for rate, words in RATES.items():
                columns[f"{title}: found at {words}"] = [number(share) for share in parts[method][f"tpr_{rate}"]]
        wide[heading] = pd.DataFrame(columns)
    caption = "How well detectors find each attack alone, beside two known ones."
    return Table("detector_attacks", caption, tidy, wide, _attacks_notes(scores))


def _attacks_notes(scores: Scores) -> list[str]:
    count, fitted = scores.validation_images, scores.fitted
    return [
        "Each attack is measured on pairs: the images that it changed, clean and attacked; those that it left "
        f"unchanged are left out and counted. *{statistics.ALL.capitalize()}*: the pairs of all real attacks together; "
        "noise aims at nothing and stands apart. AUROC: 95 % intervals of DeLong for pairs. *Found at 5 % (1 %)*: the "
        "share of attacked images above the threshold above which at most 5 % (1 %) of the clean "
        + (
            f"validation images ({count}) lie; the table of benign changes tells the rate on other clean images."
            if count
            else "images of the same split lie; there are no validation images, so these shares are a little too high."
        ),
        f"Mahalanobis (Lee et al., 2018) and feature squeezing (Xu et al., 2018; {fitted['bits']} bits, median "
        f"{fitted['median']} × {fitted['median']}) look at the pretrained net too. The Gaussians were fitted on "
        f"{fitted['gaussians']} clean training images; the regression, and the choice of squeezers, on {fitted['fit']} "
        f"{'training' if fitted['split'] == 'train' else 'validation'} images and the seen attacks on them.",
    ]


def _pair_table(scores: Scores) -> Table:
    """Return the table of accuracy on pairs of a clean and an attacked image, by whether the attack succeeded."""
    levels = [EVALUATED_SPLITS, list(scores.attacks), list(scores.methods), OUTCOMES]
    tidy = full(statistics.pair_accuracy(scores.pairs), levels, [*KEYS, "outcome"])
    wide = {}
    for split, heading in SPLIT_TITLES.items():
        columns = {"attack": list(scores.attacks.values())}
        for place, (method, title) in enumerate(scores.methods.items()):
            rows = tidy[(tidy["split"] == split) & (tidy["method"] == method)]
            for outcome in OUTCOMES[:2]:
                part = rows[rows["outcome"] == outcome]
                if place == 0:
                    columns[f"images, {outcome}"] = [str(count) for count in part["images"]]
                columns[f"{title}: {outcome}"] = intervals(part, *ACCURACY)
        wide[heading] = pd.DataFrame(columns)
    note = (
        "Half of the images are clean, so guessing is right in 0.5. An image is called adversarial above the "
        "threshold of 5 %. *Succeeded*: the pretrained net went from right to wrong; *failed*: it stayed "
        "right; images that it got wrong before are in neither. "
    )
    caption = "Accuracy of detectors on pairs of a clean image and what an attack made of it."
    return Table("detector_pairs", caption, tidy, wide, [note + INTERVALS])


def _benign_table(scores: Scores) -> Table:
    """Return the table of the shares of clean and of benignly changed images that are accused of being attacked."""
    rows, count = scores.rows, scores.validation_images
    changes = [CLEAN, *dict.fromkeys(rows.loc[rows["kind"] == "benign", "attack"])]
    tidy = full(statistics.false_positives(rows), [EVALUATED_SPLITS, changes, list(scores.methods)], KEYS)
    wide = {}
    for split, heading in SPLIT_TITLES.items():
        columns = {"images": changes}
        for method, title in scores.methods.items():
            part = tidy[(tidy["split"] == split) & (tidy["method"] == method)]
            for rate, words in RATES.items():
                ends = (f"fpr_{rate}{end}" for end in ("", "_low", "_high", "_sd"))
                columns[f"{title}: accused at {words}"] = intervals(part, *ends)
        wide[heading] = pd.DataFrame(columns)
    note = "The changes are common corruptions of strength 2. The row of clean images " + (
        f"tells how well the thresholds, set on {count} validation images, hold on others. "
        if count
        else "keeps the rate by construction: there are no validation images to set thresholds on. "
    )
    caption = "Clean and benignly changed images that detectors accuse."
    return Table("detector_benign", caption, tidy, wide, [note + INTERVALS])


def _attacker_table(scores: Scores) -> Table:
    """Return the table of how structures with a detector withstand attackers who know of it, and those who do not."""
    own_detectors, settings = [name for name in scores.methods if name not in KNOWN_DETECTORS], scores.params.detection
    tidy = full(statistics.joint_robustness(scores.rows), [EVALUATED_SPLITS, list(ATTACKERS), own_detectors], KEYS)
    wide = {}
    for split, heading in SPLIT_TITLES.items():
        part = tidy[tidy["split"] == split]
        part = part.sort_values("method", kind="stable", key=lambda methods: methods.map(own_detectors.index))
        columns = {
            "structure": list(part["method"]),
            "attacker": [ATTACKERS[name] for name in part["attack"]],
            "images": [str(count) for count in part["images"]],
            "classified right": [number(share) for share in part["right"]],
            "accused": [number(share) for share in part["accused"]],
            "right or accused": intervals(part, "joint", "joint_low", "joint_high", "joint_sd"),
        }
        wide[heading] = pd.DataFrame(columns)
    note = (
        "*Right or accused* is the joint robust accuracy at 5 %: the share of images that are still classified "
        "right, or detected. Both attackers run PGD in L∞ on the structure's own net "
        f"(eps {settings.eps:g}, {settings.steps} steps a run); nothing is rounded to 8 bits. "
        "The one who sees both, pretrained net and detector too, lowers the detector's score along with the "
        "classifier's accuracy and keeps, of all wrongly classified images on the way, the one with the lowest "
        "score. "
    )
    caption = "Structures with a detector against an attacker who aims at them."
    return Table("detector_joint", caption, tidy, wide, [note + INTERVALS])
