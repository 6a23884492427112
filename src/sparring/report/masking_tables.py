"""Make the article's Tables 3 to 6 beside ours, and the table of the controls."""

import math
from collections.abc import Iterable
from typing import Any

import pandas as pd

from sparring.mask_padding import NEITHER, TRANSFER, WHITEBOX
from sparring.params.masking import RESEEDED, UNDEFENDED, Study
from sparring.params.names import CLEAN
from sparring.report import paper
from sparring.report.escape import markdown
from sparring.report.masking_facts import CW, KEYS, LOCAL, NET, Facts, cw_within
from sparring.report.table import ACCURACY, INTERVALS, Table, intervals, number

CW_TRAINING, MASKS, PADDING = "cw_training", "mask_", "padding"
UNMASKED = f"{MASKS}0"  # trained as with a mask that hides nothing
UNSTATED = "unstated"
CAPTIONS = {
    3: "Table 3 of the article: nets without a defence.",
    4: "Table 4 of the article: training on stored C&W images.",
    5: "Table 5 of the article: training with a share of the features masked.",
    6: "Table 6 of the article: training with padded features.",
}
DATASETS = {"gtsrb": "GTSRB", "belgium": "BelgiumTS", "orl": "ORL", "yale": "Yale"}
ATTACKS = {CLEAN: "clean", "fgsm": "FGSM", "ifgsm": "I-FGSM", "rfgsm": "R-FGSM", "pgd": "PGD", CW: "C&W"}
FIGURES = [*ACCURACY, "images", "trainings", "balanced_accuracy", "fooled", "l2_median"]
ATTACKERS = (
    "`transfer`: the images were attacked against the undefended net of that architecture, `none`, as the article's "
    "probably were; for `none` itself that is white-box. What a defence has to beat there is `seed`, the same net from "
    f"other random numbers, and, where it was trained, `{UNMASKED}`, whose mask hides nothing: like nearly every "
    "defence it meets the images in the order in which `none` met them, and begins from other weights, whereas `seed` "
    "has another order too. `white-box`: each net is attacked itself; an image that it gets wrong when clean stays "
    "as it is. `balanced` is the mean of the classes' accuracies on clean images; the .csv has it under attacks too."
)
LENGTHS = (
    "An attack without a radius fools any net in the end. So under C&W an image counts as right at an L2 length unless "
    "the net gets it wrong when clean or is fooled by a change of that length at most. `fooled` and `median L2` are of "
    "the images that the net gets right when clean: the share that white-box C&W fools, and how long its changes are, "
    "an image that it never fools being infinitely far; unless it fools more than half, the median is `infinite`. "
    "Lengths are of images in 0 to 1."
)
NOBODY = (
    "`none` as a defence is the undefended net; as an attacker, which only the .csv names, it is nobody: those images "
    "are clean."
)


def length(value: float) -> str:
    """Format an L2 length; `infinite` stands for that of an image that is never fooled."""
    return "infinite" if math.isinf(value) else number(value)


def title_of(titles: dict[str, str], name: str) -> str:
    """Return a name's title, or the name itself where it has none."""
    return titles.get(name, name)


def article_lines(study: Study) -> pd.DataFrame:
    """Assign the article's accuracies to our rows.

    Columns: table, dataset, network, defence, attack, article (its accuracy), and article_dataset and article_network,
    which are what the article says, or `unstated`. Accuracies without a network are assigned to our control nets, those
    without a data set to each data set that has the network.
    """
    lines: list[dict[str, Any]] = []
    for row in paper.masking().to_dict("records"):
        line = {"table": row["table"], "attack": row["attack"], "article": row["article"]}
        line |= {"article_dataset": row["dataset"], "article_network": row["network"]}
        defence = {3: UNDEFENDED, 4: CW_TRAINING, 6: PADDING}.get(row["table"])
        line["defence"] = defence or f"{MASKS}{row['mask_percent']:.0f}"
        datasets = [row["dataset"]]
        if row["dataset"] == UNSTATED:
            datasets = [name for name, entry in study.datasets.items() if row["network"] in entry.networks] or datasets
        for dataset in datasets:
            networks = [row["network"]]
            if row["network"] == UNSTATED and dataset in study.datasets:
                networks = study.datasets[dataset].controls
            lines += [line | {"dataset": dataset, "network": network} for network in networks]
    return pd.DataFrame(lines)


def article_tables(facts: Facts) -> list[Table]:
    """Return Tables 3 to 6; a net that was not measured has the article's accuracies and a dash for ours."""
    lines = article_lines(facts.study)
    return [_article_table(facts, number, lines[lines["table"] == number]) for number in CAPTIONS]


def _article_table(facts: Facts, number: int, lines: pd.DataFrame) -> Table:
    nets: list[tuple[str, str, str]] = []
    for (dataset, network), own in lines.groupby(["dataset", "network"], sort=False):
        defences = list(dict.fromkeys(own["defence"].astype(str)))
        if dataset in facts.measured_datasets:
            entry = facts.study.datasets[str(dataset)]
            unmasked = [UNMASKED] if UNMASKED in facts.study.defences and network in entry.controls else []
            defences = list(dict.fromkeys([UNDEFENDED, RESEEDED, *unmasked, *defences]))
        nets += [(str(dataset), str(network), defence) for defence in defences]
    tidy = _tidy(facts, nets, lines)
    notes = [_article_note(number), *_notes(facts, tidy)]
    return Table(f"mask_padding_table{number}", CAPTIONS[number], tidy, _wide(tidy, facts), notes)


def controls(facts: Facts) -> Table:
    """Return the table of all defences but three masks on the data sets' control nets."""
    order = [UNDEFENDED, RESEEDED, UNMASKED, f"{MASKS}20", PADDING, CW_TRAINING]
    order += [name for name in facts.study.defences if name not in order]
    order = [name for name in order if name not in ("mask_10", "mask_30", "mask_40")]
    known = (UNDEFENDED, *facts.study.defences)
    nets = [
        (dataset, network, defence)
        for dataset in facts.measured_datasets
        for network in facts.study.datasets[dataset].controls
        for defence in order
        if defence in known
    ]
    tidy = _tidy(facts, nets, None)
    caption = "What else was trained: what masks and padding have to be compared with, on the control nets."
    return Table("mask_padding_controls", caption, tidy, _wide(tidy, facts), _notes(facts, tidy))


def _notes(facts: Facts, tidy: pd.DataFrame) -> list[str]:
    """Return the notes that every table has.  tidy: the table's numbers."""
    narrow = width_notes(facts.study, tidy["network"])
    return [NOBODY, ATTACKERS, _flatness_note(facts.study), LENGTHS, *narrow, _interval_note(facts)]


def width_notes(study: Study, networks: Iterable[str]) -> list[str]:
    """Say which of these networks are narrower than the published ones."""
    return [
        f"{markdown(name)} has {study.networks[name].network['width_factor']:g} of the width of the published net, "
        "which would take too long on a processor."
        for name in dict.fromkeys(networks)
        if name in study.networks and study.networks[name].network.get("width_factor", 1) != 1
    ]


def _flatness_note(study: Study) -> str:
    local = study.linearity
    return (
        f"`gradient norm` is the mean L2 norm of the cross-entropy's gradient by the image, `linearity error` the mean "
        f"of the largest distance between the loss and its linear approximation within eps (Qin et al., 2019), found "
        f"in {local.steps} steps; both of at most {local.images} test images. Of a net that is nearly constant around "
        "an image both are near zero. A net that is sure of everything has small gradients too, without being harder "
        "to attack."
    )


def _tidy(facts: Facts, nets: list[tuple[str, str, str]], lines: pd.DataFrame | None) -> pd.DataFrame:
    """Return a row for every net, clean, under each attack and under C&W at each radius, from both attackers.

    The last columns say how flat the net is, in each of its rows.

    lines: from `article_lines`, of one table; the article's accuracies are in the rows of transfer.
    """
    attacks = [*facts.study.attacks, *(cw_within(radius) for radius in facts.study.radii)]
    conditions = [(NEITHER, CLEAN), *((attacker, attack) for attacker in (TRANSFER, WHITEBOX) for attack in attacks)]
    index = pd.MultiIndex.from_tuples([(*net, *condition) for net in nets for condition in conditions], names=KEYS)
    tidy = facts.measured.reindex(index)[FIGURES].reset_index()
    counts = ["images", "trainings"]
    tidy = tidy.fillna(dict.fromkeys(counts, 0)).astype(dict.fromkeys(counts, "int64"))
    tidy.insert(5, "eps", tidy["attack"].map(facts.radii))
    if lines is not None:
        article = lines.assign(attacker=[NEITHER if attack == CLEAN else TRANSFER for attack in lines["attack"]])
        article = article[[*KEYS, "article", "article_dataset", "article_network"]]
        tidy = tidy.merge(article, on=KEYS, how="left", validate="one_to_one")
    flat = facts.flatness.reindex(pd.MultiIndex.from_frame(tidy[NET])).reset_index(drop=True)
    return pd.concat([tidy, flat], axis=1)


def _wide(tidy: pd.DataFrame, facts: Facts) -> dict[str, pd.DataFrame]:
    """Format for each data set a frame of accuracies and, where anything was measured, one of C&W by length."""
    wide = {}
    for dataset, rows in tidy.groupby("dataset", sort=False):
        title = title_of(DATASETS, str(dataset))
        cells = _cells(rows)
        nets = list(rows[["network", "defence"]].drop_duplicates().itertuples(index=False, name=None))
        measured = {net for net in nets if (*net, NEITHER, CLEAN) in cells}
        lines = [line for net in nets for line in _lines(rows, cells, net, net in measured, facts)]
        wide[title] = pd.DataFrame(lines)
        if measured:
            lengths = [line for net in nets if net in measured for line in _lengths(rows, cells, net, facts)]
            wide[f"{title}: C&W by the length of its changes"] = pd.DataFrame(lengths)
    return wide


def _cells(rows: pd.DataFrame) -> dict[tuple[str, ...], str]:
    """Format the accuracies that were measured, by network, defence, attacker and attack."""
    known = rows[rows["accuracy"].notna()]
    keys = known[["network", "defence", "attacker", "attack"]].itertuples(index=False, name=None)
    return dict(zip(keys, intervals(known, *ACCURACY), strict=True))


def _lines(
    rows: pd.DataFrame, cells: dict[tuple[str, ...], str], net: tuple[str, str], is_measured: bool, facts: Facts
) -> Iterable[dict[str, str]]:
    """Yield the lines of one net: the article's accuracies where it has any, ours under transfer, ours white-box."""
    own = rows[(rows["network"] == net[0]) & (rows["defence"] == net[1])]
    start = {"network": net[0], "defence": net[1]}
    flat = _flat(own)
    if "article" in own and own["article"].notna().any():
        stated = own.dropna(subset="article").set_index("attack")["article"].to_dict()
        line = start | {"figures": f"article{_unstated(own)}", "clean": number(stated.get(CLEAN), 4), "balanced": "-"}
        line |= {title_of(ATTACKS, name): number(stated.get(name), 4) for name in facts.study.attacks}
        yield line | dict.fromkeys(flat, "-")
    if not is_measured:
        dashes = {title_of(ATTACKS, name): "-" for name in facts.study.attacks}
        yield start | {"figures": "ours", "clean": "-", "balanced": "-"} | dashes | flat
        return
    balanced = own.loc[own["attack"] == CLEAN, "balanced_accuracy"].iloc[0]
    for attacker in (TRANSFER, WHITEBOX):
        line = start | {"figures": attacker}
        line |= {"clean": cells[(*net, NEITHER, CLEAN)], "balanced": number(balanced)}
        if attacker == WHITEBOX:  # they stand one line above
            line |= {"clean": "", "balanced": ""}
        line |= {title_of(ATTACKS, name): cells.get((*net, attacker, name), "-") for name in facts.study.attacks}
        yield line | (flat if attacker == TRANSFER else dict.fromkeys(flat, ""))


def _flat(own: pd.DataFrame) -> dict[str, str]:
    """Format how flat a net is."""
    cells = {}
    for name in LOCAL:
        value, sd = own[name].iloc[0], own[f"{name}_sd"].iloc[0]
        cells[name.replace("_", " ")] = number(value) + ("" if math.isnan(sd) else f" ± {number(sd)}")
    return cells


def _unstated(own: pd.DataFrame) -> str:
    """Say whether the article leaves the data set or the network of a net's accuracies unstated."""
    figure = own.dropna(subset="article").iloc[0]
    missing = [key for key in ("dataset", "network") if figure[f"article_{key}"] == UNSTATED]
    return f" ({' and '.join(missing)} unstated)".replace("dataset", "data set") if missing else ""


def _lengths(
    rows: pd.DataFrame, cells: dict[tuple[str, ...], str], net: tuple[str, str], facts: Facts
) -> Iterable[dict[str, str]]:
    """Yield the lines of one net under C&W by the length of its changes, transfer and white-box."""
    own = rows[(rows["network"] == net[0]) & (rows["defence"] == net[1]) & (rows["attack"] == CW)]
    for attacker in (TRANSFER, WHITEBOX):
        fooled, median = own.loc[own["attacker"] == attacker, ["fooled", "l2_median"]].iloc[0].astype(float)
        line = {"network": net[0], "defence": net[1], "figures": attacker}
        line |= {"fooled": number(fooled), "median L2": length(median)}
        columns = {f"right at {radius:g}": (*net, attacker, cw_within(radius)) for radius in facts.study.radii}
        yield line | {name: cells.get(key, "-") for name, key in columns.items()}


def _article_note(number: int) -> str:
    text = "The lines `article` have its figures, which it gives in per cent."
    if number == 5:
        text += (
            " The number of its network for signs is illegible in this table: its figures stand beside our first net."
        )
    if number == 6:
        text += " It does not say which data set its faces are from: those figures stand beside each of ours."
    return text


def _interval_note(facts: Facts) -> str:
    names = [title_of(DATASETS, name) for name in facts.measured_datasets if facts.splits[name] > 1]
    if not names:
        return INTERVALS
    return (
        f"{INTERVALS} On {' and '.join(names)}, which has several splits, each with trainings of its own, figures "
        "are means over them, ± their standard deviation, which the interval does not contain; an image counts once."
    )
