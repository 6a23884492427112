"""Put experiments and commits side by side: the tables of their reports, read through DVC."""

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
    """Hold the parameters of an experiment or commit, by their dotted names, and its report's numbers."""

    name: str
    params: dict[str, str]
    mixture: pd.DataFrame  # Table 2, one number per row
    per_attack: pd.DataFrame  # Table 4, one number per row
    whitebox: pd.DataFrame  # accuracy under white-box attacks, one number per row; empty where none was run
    detector: pd.DataFrame  # split, structure, figure, value


def compare(revisions: Sequence[str]) -> list[Table]:
    """Return tables with a column for each revision: differing parameters, Tables 2 and 4, white box, detector.

    revisions: names of experiments, branches, tags, commits, or `workspace` for the files as they are now.
    Raises InputError for a revision that there is not, or that has no report.
    """
    contents = [read(name) for name in dict.fromkeys(revisions)]
    tables = (_parameters_table, _mixture_table, _per_attack_table, _whitebox_table, _detector_table)
    return [table(contents) for table in tables]


def read(name: str) -> Revision:
    """Read a revision's parameters and numbers. Raises InputError where it or its report cannot be found."""
    try:
        system = DVCFileSystem(rev=None if name == WORKSPACE else name)
        values = YAML(typ="safe").load(_read_text(system, PARAMS_FILE))
        summary = json.loads(_read_text(system, (HERE.reports / "summary.json").as_posix()))
        mixture, per_attack = (
            pd.read_csv(system.open((HERE.reports / "tables" / f"{table}.csv").as_posix()))
            for table in ("table2", "table4")
        )
        path = (HERE.reports / "tables" / "whitebox.csv").as_posix()  # older reports have none
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


def _read_text(system: DVCFileSystem, path: str) -> str:
    text: str = system.read_text(path, encoding="utf-8")
    return text


def _leaves(values: dict[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """Yield the dotted name and the text of each value in nested parameters."""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value if isinstance(value, str) else json.dumps(value)


def _parameters_table(revisions: list[Revision]) -> Table:
    keys = dict.fromkeys(key for revision in revisions for key in revision.params)
    differing = [key for key in keys if len({revision.params.get(key) for revision in revisions}) > 1]
    columns = {revision.name: [revision.params.get(key, "-") for key in differing] for revision in revisions}
    frame = pd.DataFrame({"parameter": differing, **columns})
    notes = [] if differing else ["No parameter differs."]
    return Table("parameters", "The parameters in which they differ.", frame, {"": frame} if differing else {}, notes)


def _joined(revisions: list[Revision], part: str) -> pd.DataFrame:
    """Concatenate a frame of all revisions, whose names become the first column."""
    frames = [getattr(revision, part).assign(revision=revision.name) for revision in revisions]
    joined = pd.concat(frames, ignore_index=True)
    return joined[["revision", *joined.columns.drop("revision")]]


def _side_by_side(tidy: pd.DataFrame, revisions: list[Revision], rows: list[str], cells: pd.Series) -> pd.DataFrame:
    """Return a row for each combination of the columns `rows`, in order, and a column for each revision.

    cells: the text of each row of `tidy`; `-` where there is none.
    """
    indexed = tidy[[*rows, "revision"]].assign(cell=cells)
    order = indexed[rows].drop_duplicates()
    wide = indexed.pivot(index=rows, columns="revision", values="cell")
    names = [revision.name for revision in revisions]
    return order.join(wide.reindex(columns=names), on=rows).fillna("-").reset_index(drop=True)


def _cells(tidy: pd.DataFrame) -> pd.Series:
    """Format accuracies with their intervals."""
    intervals = tidy.reindex(columns=list(ACCURACY)).to_numpy(float)  # old reports have no sd
    return pd.Series([with_interval(*row) for row in intervals], tidy.index)


def _mixture_table(revisions: list[Revision]) -> Table:
    tidy = _joined(revisions, "mixture")
    return Table(
        "table2",
        "Accuracy on the mixture (white-box for the baseline, transfer for the others).",
        tidy,
        _by_split(tidy, revisions, ["structure"]),
        [
            INTERVALS + " Columns are other runs: where their data, attacks or mixture differ, so do the images "
            "that they are measured on."
        ],
    )


def _per_attack_table(revisions: list[Revision]) -> Table:
    tidy = _joined(revisions, "per_attack")
    return Table(
        "table4",
        "Accuracy on the clean images and under each stored attack alone.",
        tidy,
        _by_split(tidy, revisions, ["structure", "attack"]),
        [TRANSFER],
    )


def _by_split(tidy: pd.DataFrame, revisions: list[Revision], rows: list[str]) -> dict[str, pd.DataFrame]:
    return {
        SPLIT_TITLES[str(split)]: _side_by_side(part, revisions, rows, _cells(part))
        for split, part in tidy.groupby("split", sort=False)
    }


def _whitebox_table(revisions: list[Revision]) -> Table:
    tidy = _joined(revisions, "whitebox").fillna({"radius": ""})
    rows = tidy.rename(columns={"radius": "within"})
    wide = {"": _side_by_side(rows, revisions, ["structure", "attack", "within"], _cells(tidy))} if len(tidy) else {}
    notes = [INTERVALS] if wide else ["No white-box attack was run."]
    return Table(
        "whitebox", "Accuracy under attacks aimed at each structure itself, on test images.", tidy, wide, notes
    )


def _detector_table(revisions: list[Revision]) -> Table:
    tidy = _joined(revisions, "detector")
    wide = {}
    for split, part in tidy.groupby("split", sort=False):
        cells = pd.Series([number(value) for value in part["value"].astype(float)], part.index)
        rows = part.assign(figure=part["figure"].map(DETECTOR))
        wide[SPLIT_TITLES[str(split)]] = _side_by_side(rows, revisions, ["structure", "figure"], cells)
    notes = [] if wide else ["No structure has a detector."]
    return Table("detector", "The detector on the mixture.", tidy, wide, notes)
