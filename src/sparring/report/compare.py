"""Experiments and commits side by side: the tables that their reports hold, read through DVC."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from dvc.api import DVCFileSystem
from dvc.exceptions import DvcException
from ruamel.yaml import YAML

from sparring.layout import HERE
from sparring.params.errors import InputError
from sparring.params.names import EVALUATED_SPLITS, PARAMS_FILE
from sparring.report.table import ACCURACY, INTERVALS, SPLIT_TITLES, TRANSFER, Table, number, with_interval

WORKSPACE = "workspace"
WHITEBOX = ["attack", "radius", "structure", *ACCURACY]
DETECTOR = {"accuracy": "accuracy", "auroc": "AUROC", "tpr_at_fpr05": "found at 5 % accused"}


@dataclass(frozen=True)
class Revision:
    """What one experiment or commit holds: its parameters, by their dotted names, and its report's figures."""

    name: str
    params: dict[str, str]
    mixture: pd.DataFrame  # Table 2, one figure a row
    per_attack: pd.DataFrame  # Table 4, the same
    whitebox: pd.DataFrame  # accuracy under white-box attacks, the same; empty where no such attack was run
    detector: pd.DataFrame  # split, structure, figure, value


def compare(revisions: Sequence[str]) -> list[Table]:
    """The parameters that differ, Tables 2 and 4, white-box accuracy and the detector's figures, each with a column a
    revision.

    revisions: names of experiments, branches, tags, commits, or `workspace` for the files as they are now.
    Raises InputError for a revision that there is not, or that has no report.
    """
    found = [read(name) for name in dict.fromkeys(revisions)]
    return [_parameters(found), _mixture(found), _per_attack(found), _whitebox(found), _detector(found)]


def read(name: str) -> Revision:
    """One revision's parameters and figures; InputError where it or its report cannot be found."""
    try:
        system = DVCFileSystem(rev=None if name == WORKSPACE else name)
        values = YAML(typ="safe").load(_text(system, PARAMS_FILE))
        summary = json.loads(_text(system, (HERE.reports / "summary.json").as_posix()))
        mixture, per_attack = (
            pd.read_csv(system.open((HERE.reports / "tables" / f"{table}.csv").as_posix()))
            for table in ("table2", "table4")
        )
        path = (HERE.reports / "tables" / "whitebox.csv").as_posix()  # reports of old have none
        whitebox = pd.read_csv(system.open(path)) if system.exists(path) else pd.DataFrame(columns=WHITEBOX)
    except FileNotFoundError as error:
        raise InputError(
            f"{name} has no {error.filename or error}; `dvc repro` or `dvc exp run` makes it, and git has to keep it"
        ) from error
    except DvcException as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"{name} cannot be found ({reason}); use {WORKSPACE}, a commit, or a name that `dvc exp list --all` shows"
        ) from error
    rows = [
        {"split": split, "structure": structure, "figure": key, "value": value}
        for split in EVALUATED_SPLITS
        for structure, figures in (summary if split == "test" else summary[split])["detector"].items()
        for key, value in figures.items()
        if key in DETECTOR
    ]
    detector = pd.DataFrame(rows, columns=["split", "structure", "figure", "value"])
    return Revision(name, dict(_leaves(values)), mixture, per_attack, whitebox, detector)


def _text(system: DVCFileSystem, path: str) -> str:
    text: str = system.read_text(path, encoding="utf-8")
    return text


def _leaves(values: dict[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value if isinstance(value, str) else json.dumps(value)


def _parameters(found: list[Revision]) -> Table:
    keys = dict.fromkeys(key for revision in found for key in revision.params)
    differ = [key for key in keys if len({revision.params.get(key) for revision in found}) > 1]
    columns = {revision.name: [revision.params.get(key, "-") for key in differ] for revision in found}
    frame = pd.DataFrame({"parameter": differ, **columns})
    notes = [] if differ else ["No parameter differs."]
    return Table("parameters", "The parameters in which they differ.", frame, {"": frame} if differ else {}, notes)


def _joined(found: list[Revision], part: str) -> pd.DataFrame:
    frames = [getattr(revision, part).assign(revision=revision.name) for revision in found]
    joined = pd.concat(frames, ignore_index=True)
    return joined[["revision", *joined.columns.drop("revision")]]


def _side_by_side(tidy: pd.DataFrame, found: list[Revision], rows: list[str], cells: pd.Series) -> pd.DataFrame:
    """A row for each combination of `rows`, in order of appearance, and a column a revision; `-` for what is not."""
    indexed = tidy[[*rows, "revision"]].assign(cell=cells)
    order = indexed[rows].drop_duplicates()
    wide = indexed.pivot(index=rows, columns="revision", values="cell")
    names = [revision.name for revision in found]
    return order.join(wide.reindex(columns=names), on=rows).fillna("-").reset_index(drop=True)


def _cells(tidy: pd.DataFrame) -> pd.Series:
    intervals = tidy.reindex(columns=list(ACCURACY)).to_numpy(float)  # old reports have no sd
    return pd.Series([with_interval(*row) for row in intervals], tidy.index)


def _mixture(found: list[Revision]) -> Table:
    tidy = _joined(found, "mixture")
    return Table(
        "table2",
        "Accuracy on the mixture (white-box for the baseline, transfer for the others).",
        tidy,
        _by_split(tidy, found, ["structure"]),
        [
            INTERVALS + " Columns are other runs: where their data, attacks or mixture differ, so do the images "
            "that they are measured on."
        ],
    )


def _per_attack(found: list[Revision]) -> Table:
    tidy = _joined(found, "per_attack")
    return Table(
        "table4",
        "Accuracy on the clean images and under each stored attack alone.",
        tidy,
        _by_split(tidy, found, ["structure", "attack"]),
        [TRANSFER],
    )


def _by_split(tidy: pd.DataFrame, found: list[Revision], rows: list[str]) -> dict[str, pd.DataFrame]:
    return {
        SPLIT_TITLES[str(split)]: _side_by_side(part, found, rows, _cells(part))
        for split, part in tidy.groupby("split", sort=False)
    }


def _whitebox(found: list[Revision]) -> Table:
    tidy = _joined(found, "whitebox").fillna({"radius": ""})
    rows = tidy.rename(columns={"radius": "within"})
    wide = {"": _side_by_side(rows, found, ["structure", "attack", "within"], _cells(tidy))} if len(tidy) else {}
    notes = [INTERVALS] if wide else ["No white-box attack was run."]
    return Table(
        "whitebox", "Accuracy under attacks aimed at each structure itself, on test images.", tidy, wide, notes
    )


def _detector(found: list[Revision]) -> Table:
    tidy = _joined(found, "detector")
    wide = {}
    for split, part in tidy.groupby("split", sort=False):
        cells = pd.Series([number(value) for value in part["value"].astype(float)], part.index)
        read = part.assign(figure=part["figure"].map(DETECTOR))
        wide[SPLIT_TITLES[str(split)]] = _side_by_side(read, found, ["structure", "figure"], cells)
    notes = [] if wide else ["No structure has a detector."]
    return Table("detector", "The detector on the mixture.", tidy, wide, notes)
