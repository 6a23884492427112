"""Say what was reproduced, and what was not, in sentences that follow from the numbers."""

import itertools
from collections.abc import Mapping, Sequence

import pandas as pd

from sparring.mask_padding import NEITHER, TRANSFER, WHITEBOX
from sparring.params.masking import RESEEDED, UNDEFENDED
from sparring.params.names import CLEAN
from sparring.report.differences import capitalised, signed
from sparring.report.escape import markdown
from sparring.report.masking_facts import CW, LOCAL, Facts
from sparring.report.masking_tables import (
    ATTACKS,
    CW_TRAINING,
    DATASETS,
    MASKS,
    PADDING,
    UNMASKED,
    article_lines,
    length,
    title_of,
)
from sparring.report.table import ACCURACY, number, with_interval

Difference = Mapping[str, float]
MASK = f"{MASKS}20"
MASKS_OF_TABLE_5 = tuple(f"{MASKS}{share}" for share in (10, 20, 30, 40))
PEERS = ("noise", "cutout", "erasing", "fgsm_training", "pgd_training")
STRONGEST = "pgd"  # of the attacks that keep to a radius
FLAT = dict(zip(LOCAL, ("gradient norm", "linearity error"), strict=True))


def sentences(facts: Facts) -> list[str]:
    """Return paragraphs in Markdown; findings for which rows are missing are left out."""
    if not facts.measured_datasets:
        return ["Nothing was measured yet, so nothing of the article was tried."]
    paragraphs = _undefended(facts) + _beside_article(facts) + _against_reseed(facts) + _flatness_by_share(facts)
    paragraphs += _carries_over(facts)
    for dataset in facts.measured_datasets:
        for network in facts.study.datasets[dataset].controls:
            where = f"{title_of(DATASETS, dataset)}, {network}"
            for defence in (MASK, PADDING):
                paragraphs += _defence(facts, dataset, network, defence, where)
            paragraphs += _peers(facts, dataset, network, where)
    return paragraphs


def _cell(facts: Facts, dataset: str, network: str, defence: str, attacker: str, attack: str) -> str | None:
    """Format an accuracy with its interval; None where it was not measured."""
    key = (dataset, network, defence, attacker, attack)
    row = facts.by_condition.get(key)
    return with_interval(*(float(row[name]) for name in ACCURACY)) if row else None


def _undefended(facts: Facts) -> list[str]:
    """Say how far undefended nets fall (Table 3)."""
    lines = article_lines(facts.study)
    published = lines[lines["table"] == 3].set_index(["dataset", "network", "attack"])["article"].to_dict()
    parts = []
    for dataset in facts.measured_datasets:
        for network in facts.study.datasets[dataset].controls:
            figures = []
            for attack in (CLEAN, "fgsm", CW):
                attacker = NEITHER if attack == CLEAN else WHITEBOX
                cell = _cell(facts, dataset, network, UNDEFENDED, attacker, attack)
                theirs = published.get((dataset, network, attack))
                article = "" if theirs is None else f" (article {number(theirs)})"
                figures += [f"{title_of(ATTACKS, attack)} {cell}{article}"] if cell else []
            parts += [f"{title_of(DATASETS, dataset)}, {network}: {', '.join(figures)}"] if figures else []
    return [f"**The undefended nets** (Table 3), white-box. {'; '.join(parts)}."] if parts else []


def _beside_article(facts: Facts) -> list[str]:
    """Count the accuracies that the article states after masks and padding, by whether ours reach them."""
    lines = article_lines(facts.study)
    lines = lines[(lines["table"] >= 5) & (lines["attack"] != CLEAN)].assign(attacker=TRANSFER)
    keys = pd.MultiIndex.from_frame(lines[["dataset", "network", "defence", "attacker", "attack"]])
    ours = facts.measured.reindex(keys).reset_index(drop=True)
    rows = pd.concat([lines.reset_index(drop=True), ours], axis=1).dropna(subset="accuracy")
    if rows.empty:
        return []
    below = int((rows["ci_high"] < rows["article"]).sum())
    above = int((rows["ci_low"] > rows["article"]).sum())
    return [
        f"**The claim of near 90 % under attack after masks and padding** (Tables 5 and 6), under transfer: reached in "
        f"{len(rows) - below} of the {len(rows)} of our figures that stand beside one of the article's. Theirs are "
        f"{number(rows['article'].min())} to {number(rows['article'].max())}, ours {number(rows['accuracy'].min())} to "
        f"{number(rows['accuracy'].max())}; our interval over images contains theirs in {len(rows) - below - above}, "
        f"lies below it in {below} and above it in {above}."
    ]


def _against_reseed(facts: Facts) -> list[str]:
    """Count in how many cases, each a net under an attack, masks and padding beat other nets.

    Under transfer these are the undefended net that was attacked, the reseeded one, and the one whose mask hides
    nothing. Where each net is attacked itself, it is the undefended one.
    """
    defences = [name for name in facts.study.defences if name == PADDING or name in MASKS_OF_TABLE_5]
    texts = []
    for other, attacker, words in (
        (UNDEFENDED, TRANSFER, "under transfer the net is above the undefended one that was attacked"),
        (RESEEDED, TRANSFER, "under transfer it is above the same net from another seed"),
        (UNMASKED, TRANSFER, f"under transfer it is above the net whose mask hides nothing ({markdown(UNMASKED)})"),
        (UNDEFENDED, WHITEBOX, "attacked itself it is above the undefended net, attacked itself"),
    ):
        pairs = [
            facts.difference(dataset, network, (defence, attacker, attack), (other, attacker, attack))
            for dataset in facts.measured_datasets
            for network in facts.networks(dataset)
            for defence in defences
            for attack in facts.study.attacks
        ]
        known = [pair for pair in pairs if pair]
        if known:
            texts.append(f"{words} in {_count(known, 1)} of {len(known)}, and below it in {_count(known, -1)}")
    if not texts:
        return []
    return [
        "**The claim that a net trained with masks or padding beats the undefended one.** Beyond chance, counted over "
        f"nets, the article's four masks and padding, and attacks: {'; '.join(texts)}. What another seed or a mask "
        "that hides nothing does as well is not the doing of masks or padding. The latter, trained on the control nets "
        "alone, is the exact counterpart: like masks and padding it meets the training images in the attacked net's "
        "order, the other seed in another."
    ]


def _carries_over(facts: Facts) -> list[str]:
    """Say whether training on C&W images carries over to other attacks (Table 4), and whether a mere reseed does."""
    gaps: list[Difference] = []
    seed_gaps: list[Difference] = []
    gains: list[Difference] = []
    attacks = [name for name in facts.study.attacks if name != CW]
    for dataset in facts.measured_datasets:
        for network in facts.networks(dataset):
            for attack in attacks:
                trained, reseeded = (
                    [(defence, TRANSFER, CW), (defence, TRANSFER, attack)] for defence in (CW_TRAINING, RESEEDED)
                )
                gap = facts.difference(dataset, network, *trained)
                seed_gap = facts.difference(dataset, network, *reseeded)
                gain = facts.difference(dataset, network, trained[1], reseeded[1])
                gaps += [gap] if gap else []
                seed_gaps += [seed_gap] if gap and seed_gap else []
                gains += [gain] if gain else []
    if not gaps:
        return []
    text = (
        "**The claim that training on C&W images does not carry over to other attacks** (Table 4), under transfer. Of "
        f"{len(gaps)} pairs of a net and another attack than C&W, its accuracy is higher under C&W than under that "
        f"attack beyond chance in {_count(gaps, 1)}, lower in {_count(gaps, -1)}; the mean difference is {_mean(gaps)}."
    )
    if seed_gaps:
        text += (
            f" Of the reseeded undefended net, which trained on no attack, it is higher in {_count(seed_gaps, 1)} of "
            f"{len(seed_gaps)}, lower in {_count(seed_gaps, -1)}; the mean difference is {_mean(seed_gaps)}. C&W's "
            "changes are hardly longer than the net that they were made against needs, so nearly any other net gets "
            "more of them right: only by how much the trained net's gap is wider can its training be judged."
        )
    if gains:
        text += (
            f" Under those other attacks it is above the reseeded undefended net beyond chance in {_count(gains, 1)} "
            f"of {len(gains)}, below it in {_count(gains, -1)}."
        )
    return [text]


def _mean(differences: Sequence[Difference]) -> str:
    return signed(sum(difference["difference"] for difference in differences) / len(differences))


def _count(differences: Sequence[Difference], side: int) -> int:
    return sum(difference["side"] == side for difference in differences)


def _defence(facts: Facts, dataset: str, network: str, defence: str, where: str) -> list[str]:
    """Say of one defence what it beats under transfer and white-box, how accurate its net is, and how flat."""
    parts = []
    for other, attacker, start in (
        (UNDEFENDED, TRANSFER, "Under transfer, beside the undefended net that was attacked"),
        (RESEEDED, TRANSFER, "Under transfer, beside the reseeded undefended net"),
        (UNMASKED, TRANSFER, f"Under transfer, beside the net whose mask hides nothing ({markdown(UNMASKED)})"),
        (UNDEFENDED, WHITEBOX, "Attacked itself, beside the undefended net attacked itself"),
    ):
        differences = {}
        for attack in facts.study.attacks:
            condition, other_condition = (defence, attacker, attack), (other, attacker, attack)
            differences[title_of(ATTACKS, attack)] = facts.difference(dataset, network, condition, other_condition)
        text = by_side(differences, "beats it under", "cannot be told from it under", "falls behind it under")
        parts += [f"{start}, it {text}."] if text else []
    parts += _own_attacks(facts, dataset, network, defence)
    parts += _flatness(facts, dataset, network, defence)
    return [f"**{where}: {markdown(defence)}.** {' '.join(parts)}"] if parts else []


def _own_attacks(facts: Facts, dataset: str, network: str, defence: str) -> list[str]:
    """Say how accurate a net is when it is attacked itself, and how long C&W's changes are."""
    cells = []
    for attack in ("fgsm", STRONGEST):
        cell = _cell(facts, dataset, network, defence, WHITEBOX, attack)
        cells += [f"{cell} under {title_of(ATTACKS, attack)}"] if cell else []
    text = f"It keeps {' and '.join(cells)}." if cells else ""
    own, undefended = (facts.by_condition.get((dataset, network, name, WHITEBOX, CW)) for name in (defence, UNDEFENDED))
    if own and undefended:
        cells = [f"{number(float(row['fooled']))} (median L2 length {_length(row)})" for row in (own, undefended)]
        text += (
            f" Of the images that a net gets right when clean, C&W fools a share of {cells[0]}, and of the undefended "
            f"net's {cells[1]}; an image that is never fooled counts as infinitely far."
        )
    return [text.strip()] if text else []


def _length(row: Mapping[str, float]) -> str:
    return length(float(row["l2_median"]))


def _flatness_by_share(facts: Facts) -> list[str]:
    """Say how both measures of flatness change with the mask's share, beside the undefended net's."""
    parts = []
    masks = [UNMASKED, *MASKS_OF_TABLE_5]
    for dataset in facts.measured_datasets:
        for network in facts.study.datasets[dataset].controls:
            measured = [name for name in masks if (dataset, network, name) in facts.flatness.index]
            if len(measured) < 2:
                continue
            undefended = [UNDEFENDED] if (dataset, network, UNDEFENDED) in facts.flatness.index else []
            texts = []
            for column, name in FLAT.items():
                of_net = facts.flatness.xs((dataset, network))[column].astype(float)
                cells = ", ".join(f"{markdown(mask)} {number(of_net[mask])}" for mask in undefended + measured)
                change = facts.flatness_difference(dataset, network, measured[-1], column, measured[0])
                over = f", in all by {_signed(change)}" if change else ""
                texts.append(f"mean {name} {cells}, which {_trend(of_net[measured].tolist())}{over}")
            parts.append(f"{title_of(DATASETS, dataset)}, {network}: {'; '.join(texts)}")
    if not parts:
        return []
    return [
        "**The claim that a net becomes flatter as the mask's share rises** (its mechanism). Around test images, from "
        f"the smallest share to the largest, with the change's interval over images (of several splits, over trainings "
        f"too): {'. '.join(parts)}."
    ]


def _trend(values: Sequence[float]) -> str:
    changes = [later - earlier for earlier, later in itertools.pairwise(values)]
    if all(change < 0 for change in changes):
        return "falls with every step of the share"
    if all(change > 0 for change in changes):
        return "rises with every step of the share"
    return "neither falls nor rises with every step of the share"


def _flatness(facts: Facts, dataset: str, network: str, defence: str) -> list[str]:
    """Say whether a net is flatter around test images than the undefended one."""
    differences = {name: facts.flatness_difference(dataset, network, defence, column) for column, name in FLAT.items()}
    known = {name: row for name, row in differences.items() if row}
    if not known:
        return []
    words = {-1: "is smaller than", 0: "cannot be told from", 1: "is larger than"}
    texts = [
        f"its mean {name} {words[int(row['side'])]} the undefended net's ({_signed(row)})"
        for name, row in known.items()
    ]
    sides = {int(row["side"]) for row in known.values()}
    verdict = "Flatter around test images" if sides == {-1} else "Not shown to be flatter around test images"
    if sides == {1}:
        verdict = "Steeper around test images"
    caveat = " (by intervals over images alone)" if all(row["trainings"] == 1 for row in known.values()) else ""
    return [f"{verdict}{caveat}: {' and '.join(texts)}."]


def _peers(facts: Facts, dataset: str, network: str, where: str) -> list[str]:
    """Compare the mask with other transforms and with adversarial training."""
    parts = []
    for attacker, words in ((TRANSFER, "under transfer"), (WHITEBOX, "attacked itself")):
        differences = {
            markdown(peer): facts.difference(dataset, network, (MASK, attacker, STRONGEST), (peer, attacker, STRONGEST))
            for peer in PEERS
        }
        text = by_side(differences, "beats", "cannot be told from", "falls behind")
        parts += [f"{words} it {text}"] if text else []
    if not parts:
        return []
    heading = f"{where}: {markdown(MASK)} beside other trainings, under {title_of(ATTACKS, STRONGEST)}"
    return [f"**{heading}.** {_sentence(parts)}"]


def _sentence(parts: Sequence[str]) -> str:
    return f"{capitalised('; '.join(parts))}."


def _signed(difference: Difference) -> str:
    return signed(difference["difference"], difference["difference_low"], difference["difference_high"])


def by_side(differences: Mapping[str, Difference | None], above: str, neither: str, below: str) -> str:
    """List names by the side on which their difference lies beyond chance; nothing where none is known.

    An example is `beats it under FGSM (+0.100 [+0.020, +0.180]); cannot be told from it under PGD`.
    """
    parts = []
    for side, words in ((1, above), (0, neither), (-1, below)):
        known = [(name, row) for name, row in differences.items() if row and row["side"] == side]
        names = [f"{name} ({_signed(row)})" if side else name for name, row in known]
        parts += [f"{words} {', '.join(names)}"] if names else []
    return "; ".join(parts)
