"""Read and check the files that the report is made from; InputError where one is missing, broken or incomplete.

`statistics` describes rows of predictions and of stored attacks. Functions take the clean images, and check against
them which images the rows are of, and their labels.
"""

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from sparring import store
from sparring.layout import Layout
from sparring.params import Params
from sparring.params.errors import InputError, reason
from sparring.params.names import ABLATED, BASELINE, CLEAN, CORRUPTIONS, EVALUATED_SPLITS, KNOWN_DETECTORS, STRENGTHS

PREDICTION_COLUMNS = ["index", "split", "seed", "attack", "label", "prediction", "confidence", "detector_score"]
DETECTION_COLUMNS = ["index", "split", "seed", "kind", "attack", "label", "prediction", "detector", *KNOWN_DETECTORS]
CORRUPTION_COLUMNS = ["index", "split", "seed", "corruption", "strength", "label", "prediction"]
WHITEBOX_COLUMNS = ["index", "seed", "attack", "label", "prediction", "l2", "linf"]
HISTORY_COLUMNS = ["epoch", "loss", "accuracy", "validation_accuracy"]
STORED_COLUMNS = ["index", "label", "prediction", "prediction_float", "prediction_rounded", "l2", "linf"]
STAGES = ["prepare", "pretrain", "attack", "attack_unseen", "train", "evaluate", "whitebox", "corruptions", "detect"]


def detectors(params: Params) -> list[str]:
    """Return the names of the structures that have a detector."""
    return [name for name, structure in params.structures.items() if structure.detector != "none"]


def clean(layout: Layout) -> dict[str, store.Images]:
    """Read the clean images of each split, without pixels."""
    return {split: store.read(layout.clean / f"{split}.parquet", ()) for split in ("train", *EVALUATED_SPLITS)}


def images(params: Params, layout: Layout, split: str, version: str, columns: tuple[str, ...]) -> store.Images:
    """Read these columns of the images of a split.  version: CLEAN, or the name of a stored attack."""
    return store.read(_image_path(params, layout, split, version), columns)


def _image_path(params: Params, layout: Layout, split: str, version: str) -> Path:
    if version == CLEAN:
        return layout.clean / f"{split}.parquet"
    return layout.attacked(params, version) / f"{split}.parquet"


def stored(params: Params, layout: Layout, clean: dict[str, store.Images]) -> pd.DataFrame:
    """Read what every stored attack did to the test and held-out images: STORED_COLUMNS, split, attack."""
    parts = []
    attacks = {**params.attacks, **params.unseen_attacks}
    for split, attack in itertools.product(EVALUATED_SPLITS, params.all_attacks):
        columns = (*attacks[attack].predictions, "l2", "linf")
        attacked = images(params, layout, split, attack, columns)
        store.check_rows(clean[split], attacked, _image_path(params, layout, split, attack))
        rows = pd.DataFrame({"index": attacked.index, "label": attacked.label, **attacked.columns})
        rows = rows.reindex(columns=STORED_COLUMNS)  # NaN where a store has no such column
        parts.append(rows.assign(split=split, attack=attack))
    return pd.concat(parts, ignore_index=True)


def predictions(params: Params, layout: Layout, structure: str, clean: dict[str, store.Images]) -> pd.DataFrame:
    """Read a structure's predictions of all test and held-out images; adds `structure` and `correct`."""
    path = layout.predictions(structure)
    rows = _read_columns(path, PREDICTION_COLUMNS)
    rows = rows[rows["split"].isin(EVALUATED_SPLITS) & rows["attack"].isin([CLEAN, *params.all_attacks])]
    for split in EVALUATED_SPLITS:
        _check_complete(rows, path, split, clean[split], params.all_attacks)
    if structure in detectors(params) and rows["detector_score"].isna().any():
        raise InputError(f"{path} has rows without detector_score, but {structure} has a detector; run `dvc repro`")
    return rows.assign(structure=structure, correct=rows["label"] == rows["prediction"])


def predictions_of_row(params: Params, layout: Layout, row: str, clean: dict[str, store.Images]) -> pd.DataFrame:
    """Read the predictions of a row of Table 3.  params: from `row_params`."""
    return predictions(params, layout.row("table3", row), ABLATED, clean)


def predictions_without(
    params: Params, layout: Layout, attack: str, structure: str, clean: dict[str, store.Images]
) -> pd.DataFrame:
    """Read the predictions of a structure that was trained without an attack.  params: from `only`."""
    return predictions(params, layout.row("leave_one_out", attack), structure, clean)


def scores(
    params: Params, layout: Layout, structures: Sequence[str], clean: dict[str, store.Images]
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Read detectors' scores, one row per image and `method`, and facts on the images to which known ones were fitted.

    method: the name of the structure that a detector belongs to, or of a known detector, whose scores are there once.
    """
    parts: list[pd.DataFrame] = []
    fitted: dict[str, Any] = {}
    for name in structures:
        path = layout.detection(name)
        rows = _read_columns(path, DETECTION_COLUMNS)
        rows = rows[(rows["kind"] != "attack") | rows["attack"].isin(params.all_attacks)]
        pairs = rows[rows["kind"].isin([CLEAN, "attack"])]
        for split in EVALUATED_SPLITS:
            _check_complete(pairs, path, split, clean[split], params.all_attacks)
        columns = {"detector": name} | ({} if parts else {known: known for known in KNOWN_DETECTORS})
        if rows["detector"].isna().any() or rows.loc[rows["kind"] != "aimed", list(columns)].isna().any(axis=None):
            raise InputError(f"{path} has rows without scores; run `dvc repro`")
        fitted = fitted or json.loads(pq.read_schema(path).metadata[store.METADATA_KEY])
        for column, method in columns.items():
            parts.append(rows.drop(columns=["detector", *KNOWN_DETECTORS]).assign(method=method, score=rows[column]))
    if not parts:
        parts.append(pd.DataFrame(columns=[*DETECTION_COLUMNS, "method", "score"]))
    return pd.concat(parts, ignore_index=True), fitted


def corruptions(layout: Layout, structures: Sequence[str], heldout: store.Images) -> pd.DataFrame:
    """Read these structures' predictions of the held-out images under common corruptions."""
    kinds = [f"{name}:{strength}" for name in CORRUPTIONS for strength in STRENGTHS]
    parts = []
    for structure in structures:
        path = layout.corruptions(structure)
        rows = _read_columns(path, CORRUPTION_COLUMNS)
        versions = rows["corruption"].where(
            rows["strength"] == 0, rows["corruption"] + ":" + rows["strength"].astype(str)
        )
        _check_complete(rows.assign(attack=versions), path, "heldout", heldout, kinds)
        parts.append(rows.assign(structure=structure, correct=rows["label"] == rows["prediction"]))
    return pd.concat(parts, ignore_index=True)


def whitebox(params: Params, layout: Layout, test: store.Images) -> pd.DataFrame:
    """Read every structure's predictions under attacks aimed at itself; no rows where `whitebox.images` is 0.

    Columns: structure, seed, attack, index, label, prediction, l2, linf, correct.
    """
    if not params.whitebox.images:
        return _no_rows([*WHITEBOX_COLUMNS, "structure"], {"attack": "str", "structure": "str"})
    labels = pd.Series(test.label, index=test.index)
    parts = []
    for structure in params.structures:
        path = layout.whitebox(structure)
        rows = _read_columns(path, WHITEBOX_COLUMNS)
        _check_whitebox(params, rows, path, labels)
        parts.append(rows.assign(structure=structure, correct=rows["label"] == rows["prediction"]))
    rows = pd.concat(parts, ignore_index=True)
    return rows[rows["attack"].isin([CLEAN, *params.whitebox.runs])]


def _check_whitebox(params: Params, rows: pd.DataFrame, path: Path, labels: pd.Series) -> None:
    """Raise InputError unless every seed has the images of each attack once, with the labels of the test images."""
    counts = {CLEAN: params.whitebox.images} | {name: count for name, (_, count) in params.whitebox.runs.items()}
    seeds = sorted(rows["seed"].unique())
    if len(labels) and params.whitebox.images and not seeds:
        raise InputError(f"{path} has no rows; run `dvc repro`")
    for seed in seeds:
        for name, count in counts.items():
            index = rows.loc[(rows["seed"] == seed) & (rows["attack"] == name), "index"]
            expected = min(count, len(labels))
            if index.nunique() != expected or len(index) != expected:
                raise InputError(
                    f"{path}: seed {seed}, {name}: {index.nunique()} images, not {expected}; run `dvc repro`"
                )
    if (labels.reindex(rows["index"]).to_numpy() != rows["label"].to_numpy()).any():
        raise InputError(f"{path}: labels differ from the test images' labels; run `dvc repro`")


def histories(params: Params, layout: Layout) -> dict[str, pd.DataFrame]:
    """Read loss and accuracy by epoch of each structure; with `seed` where it was trained several times."""
    return {name: _history(layout.history(name)) for name in params.structures}


def _history(path: Path) -> pd.DataFrame:
    try:
        history = pd.read_csv(path)
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing; `dvc repro` makes it") from error
    except ValueError as error:
        raise InputError(f"{path} cannot be read ({error}); delete it and run `dvc repro`") from error
    absent = [name for name in HISTORY_COLUMNS if name not in history]
    if absent:
        raise InputError(f"{path} has no column {absent[0]}; delete it and run `dvc repro`")
    return history


def timings(params: Params, layout: Layout) -> list[dict[str, Any]]:
    """Read the timings of stages in the order in which they run, without those whose item params.yaml no longer has."""
    names = [*params.structures, *params.all_attacks]
    entries = []
    for path in sorted(layout.timings.glob("*.json")):
        try:
            timing = json.loads(path.read_text())
            stage, _, item = timing["stage"].partition("@")
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} is not a timing of a stage; delete it and run `dvc repro`") from error
        if stage in STAGES and (not item or item in names):  # commands write timings too
            entries.append((STAGES.index(stage), names.index(item) if item else -1, path.name, timing))
    return [timing for *_, timing in sorted(entries, key=lambda entry: entry[:3])]


def _read_columns(path: Path, columns: list[str]) -> pd.DataFrame:
    """Read these columns of a file of predictions."""
    try:
        return pd.read_parquet(path, columns=columns)
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing; `dvc repro` makes it") from error
    except (pa.ArrowException, ValueError, OSError) as error:
        raise InputError(f"{path} cannot be read ({reason(error)}); delete it and run `dvc repro`") from error


def _no_rows(columns: Sequence[str], types: Mapping[str, str]) -> pd.DataFrame:
    """Return an empty frame with these columns and `correct`; they are numbers where `types` names no other type."""
    empty = {
        name: pd.Series(dtype=types.get(name, "float64" if name in ("l2", "linf") else "int64")) for name in columns
    }
    return pd.DataFrame(empty | {"correct": pd.Series(dtype=bool)})


def _check_complete(
    predictions: pd.DataFrame, path: Path, split: str, clean: store.Images, versions: Sequence[str]
) -> None:
    """Raise InputError unless every seed predicts each image of the split exactly once, clean and in each version.

    predictions: as read from `path`.  clean: the clean images of the split.
    """
    of_split = predictions[predictions["split"] == split]
    if len(clean) and of_split.empty:
        raise InputError(f"{path} has no predictions for the {split} images; run `dvc repro`")
    groups = {key: group.to_numpy() for key, group in of_split.groupby(["seed", "attack"])["index"]}
    for seed, version in itertools.product(sorted(of_split["seed"].unique()), (CLEAN, *versions)):
        index = groups.get((seed, version), np.empty(0, np.int64))
        missing = np.setdiff1d(clean.index, index)
        where = f"{path}: seed {seed}, {split}, {version}"
        if len(missing):
            raise InputError(f"{where}: {len(missing)} of {len(clean)} images have no prediction; run `dvc repro`")
        if len(index) != len(clean):
            raise InputError(f"{where}: {len(index)} predictions for {len(clean)} images; run `dvc repro`")
    labels = pd.Series(clean.label, index=clean.index)
    if (labels.reindex(of_split["index"]).to_numpy() != of_split["label"].to_numpy()).any():
        raise InputError(f"{path}: labels of {split} differ from the clean images' labels; run `dvc repro`")


def seconds_to_train(params: Params, timings: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return the seconds of one training of each structure whose time is known.  timings: from `timings`."""
    seconds = {timing["stage"]: float(timing["seconds"]) for timing in timings}
    stages = {name: "pretrain" if name == BASELINE else f"train@{name}" for name in params.structures}
    return {name: seconds[stage] / len(params.seeds_of(name)) for name, stage in stages.items() if stage in seconds}
