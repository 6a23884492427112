"""The verdict of an audit: sentences made from its numbers."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pandas as pd

from sparring.audit.facts import Facts
from sparring.audit.plan import SHORT_SQUARE
from sparring.params.attacks import FEWEST_CLASSES
from sparring.params.names import SQUARE
from sparring.params.values import fraction
from sparring.report.table import number, with_interval

LEADERBOARD = Path(__file__).with_name("robustbench.csv")
SOURCE = (
    "[RobustBench](https://robustbench.github.io) (Croce et al., 2021, arXiv 2010.09670), records of 31 March 2025: "
    "the lowest accuracy that AutoAttack, or an adaptive attack on record there, left on 10,000 test images (ImageNet: "
    "5,000)"
)
TITLES = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "imagenet": "ImageNet"}
SURPRISE = 0.02  # the share of the images left by gradient attacks that Square may break without a sign of masking


@dataclass(frozen=True)
class Verdict:
    """The sentences of a verdict, in Markdown, the most important first.

    masked: whether gradients may be masked; None where no check was made.
    """

    sentences: list[str]
    masked: bool | None


def threat_model(facts: Facts) -> str:
    """Return the audit's norm and radius in words."""
    if facts.norm == "linf":
        return f"an L∞ radius of {round(255 * facts.eps)}/255"
    return f"an L2 radius of {facts.eps:g}"


def verdict(facts: Facts, data: str) -> Verdict:
    """Return the verdict that follows from an audit's numbers.

    data: the data set's name, by which published models are found.
    """
    signs = masking_signs(facts)
    sentences = [_headline(facts), _breakers(facts), _gradients(facts, signs), _autoattack(facts)]
    published = published_comparison(facts, data)
    masked = bool(signs) if signs or _decided_checks(facts) else None
    return Verdict([sentence for sentence in [*sentences, published] if sentence], masked)


def _headline(facts: Facts) -> str:
    worst, clean = (
        with_interval(share["accuracy"], share["ci_low"], share["ci_high"]) for share in (facts.worst, facts.clean)
    )
    right = int(facts.images["correct"].sum())
    unattacked = (
        f"**{facts.unattacked:,} of the {right:,} images that are right when clean met no attack**, as the time ran "
        "out, and count as robust. "
    )
    return (
        f"**Robust accuracy {facts.at_most}{worst}** within {threat_model(facts)}, against {clean} of the same "
        f"{len(facts.images):,} images clean. {unattacked if facts.unattacked else ''}In brackets: 95 % intervals over "
        "images. It is an upper bound: a stronger attacker may find more."
    )


def _breakers(facts: Facts) -> str:
    fallen = facts.images[facts.images["correct"] & ~facts.images["standing"]]
    if fallen.empty:
        return "No attack broke any image that is right when clean."
    counts = [f"{title} {count:,}" for title, count in fallen["attack"].value_counts().items()]
    return f"What broke the {len(fallen):,} images that fell: {'; '.join(counts)}."


def masking_signs(facts: Facts) -> list[str]:
    """Return, in words, the signs that gradients mislead the attacker or that attacks were too weak.

    The list is empty where there is no such sign, or the model has no gradients.
    """
    if not facts.has_gradients:
        return []
    failed = facts.checks[facts.checks["passed"].eq(False)]
    signs = [f"the check “{check}” failed" for check in failed["check"]]
    for row in facts.attacks.to_dict("records"):
        if row["key"] in (SHORT_SQUARE, SQUARE) and row["fooled"] > max(1, SURPRISE * row["met"]):
            signs.append(
                f"{row['attack']} broke {row['fooled']:,} of {row['met']:,} images that attacks with gradients had left"
            )
    return signs


def _gradients(facts: Facts, signs: list[str]) -> str:
    if not facts.has_gradients:
        return (
            "**The model has no gradient** that an attacker could follow (it is quantised, or decides inside), so only "
            "attacks without one were run. That says little about its robustness: attack the model before that step, "
            "or a net like it, and show this one the images (`--transfer-from`)."
        )
    if signs:
        return f"**Gradients may be masked**, so the true figure may be far lower: {'; '.join(signs)}."
    decided = _decided_checks(facts)
    if not decided:
        return "Whether gradients are masked was not checked, as the time did not allow it."
    images_text = f" on {int(facts.checks['images'].max())} images"
    return f"Nothing suggests masked gradients: all {decided} sanity checks passed{images_text}."


def _decided_checks(facts: Facts) -> int:
    """Return the number of sanity checks that passed or failed."""
    return int(facts.checks["passed"].notna().sum())


def _autoattack(facts: Facts) -> str:
    if not facts.images["standing"].any():
        return "No image was left for further attacks, among them those of AutoAttack."
    if facts.autoattack:
        return "All four parts of AutoAttack's standard version ran whole, each on what the attacks before had left."
    if facts.waiting:
        begun = facts.attacks[facts.attacks["attack"].isin(facts.waiting)].to_dict("records")
        reasons = [f"{row['attack']} met {row['met']:,} of {row['of']:,} images" for row in begun]
        left_out = [title for title in facts.waiting if title not in {row["attack"] for row in begun}]
        if left_out:
            reasons.append(f"the time left out {'; '.join(left_out)}")
        return f"This is **not AutoAttack**: {', and '.join(reasons)}. More `--minutes` go on from here."
    if facts.has_gradients:
        return f"This is **not AutoAttack**, of which APGD-T needs {FEWEST_CLASSES} classes or more."
    return "This is **not AutoAttack**, of which only Square needs no gradient."


@cache
def leaderboard() -> pd.DataFrame:
    """Read RobustBench's accuracies: data, norm, eps (as text), model, architecture, more_data, clean, robust, link."""
    return pd.read_csv(LEADERBOARD, dtype={"eps": str})


def published(facts: Facts, data: str) -> pd.DataFrame:
    """Return the published models of this data set and threat model, the most robust first."""
    table = leaderboard()
    same = (table["data"] == data) & (table["norm"] == facts.norm)
    radius = table["eps"].map(fraction).astype(float)
    return table[same & ((radius - facts.eps).abs() < 1e-3)].sort_values("robust", ascending=False, kind="stable")


def published_comparison(facts: Facts, data: str) -> str:
    """Return a sentence on how robust published models of this data set and threat model are; empty without any."""
    models = published(facts, data)
    if models.empty:
        return ""
    best, accuracy = models.iloc[0], facts.worst["accuracy"]
    below = int((models["robust"] < accuracy).sum())
    return (
        f"Of {len(models)} published models of {TITLES[data]} in this ball, {below} have less; the best, "
        f"{best['model']}, has {number(best['robust'])} (clean {number(best['clean'])}), the one in the middle "
        f"{number(models['robust'].median())} (RobustBench, March 2025)."
    )
