"""This module reads Parquet files, each with a column of encoded images and one of class numbers."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sparring import progress
from sparring.data.sources import BATCH, OFFICIAL, SPLIT_WORDS, Encoded, Source, existing_path, heldout_rows, some
from sparring.params.errors import InputError, reason
from sparring.params.names import PARAMS_FILE
from sparring.params.sections import Data


def read(data: Data) -> Source:
    """Read the Parquet file, or those below the folder, that `data.path` names.

    Raises InputError for no file, a broken one, ambiguous columns, labels that number no classes, or files that differ
    in their class names.
    """
    top = existing_path(data)
    files = [top]
    if top.is_dir():
        files = sorted(file for file in top.rglob("*.parquet") if not file.name.startswith(".") and file.is_file())
    if not files:
        raise InputError(f"{PARAMS_FILE}: data.path is {top}, which has no .parquet file in it")
    tables = [_Table.of(file) for file in files]
    class_names, remarks = _shared_names(tables)
    with_paths = data.group_pattern is not None and all(table.has_path for table in tables)
    label: list[np.ndarray] = []
    words: list[str | None] = []
    names: list[str | None] = []
    paths: list[str | None] = []
    with progress.bar("prepare: labels", sum(table.rows for table in tables)) as advance:
        for table in tables:
            by_name = _official_by_name(table.file.relative_to(top) if top.is_dir() else Path(table.file.name))
            for part in table.facts(with_paths):
                label.append(table.renumbered(part.label, class_names))
                names += [by_name] * len(part.label)
                words += [by_name] * len(part.label) if part.split is None else [str(word) for word in part.split]
                paths += part.path or []
                advance(len(part.label))
    kind = _official(words, top) or _official(names, top) or ["train"] * len(names)
    order = np.argsort([OFFICIAL.index(word) for word in kind], kind="stable").astype(np.int64)
    labels = np.concatenate([np.empty(0, np.int64), *label])[order]
    official = heldout_rows(np.array(kind)[order])
    classes = _class_names(class_names, labels, official, top)
    ordered = [paths[row] for row in order] if with_paths else None
    return Source(str(top), labels, official, classes, ordered, partial(_from_tables, tables, order), remarks)


def _official_by_name(file: Path) -> str | None:
    """Return the split in the name of a file or its folder, as in train-00000-of-00001.parquet; None without one."""
    words = re.split(r"[^a-z]+", file.stem.lower()) + re.split(r"[^a-z]+", file.parent.name.lower())
    return next((SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS), None)


def _official(words: list[str | None], top: Path) -> list[str]:
    """Return the official split of each row, which its word names; an empty list where no row's word names one.

    Raises InputError where only some of the words do.
    """
    split_of = {word: SPLIT_WORDS.get(str(word).lower()) for word in dict.fromkeys(words)}
    if not any(split_of.values()):
        return []
    unknown = [word for word, official in split_of.items() if official is None]
    if unknown:
        problem = "rows that no file name or split column places" if unknown[0] is None else f"the split {unknown[0]}"
        raise InputError(
            f"{top} has {problem}, beside {', '.join(filter(None, split_of.values()))}; use {', '.join(OFFICIAL)}"
        )
    return [str(split_of[word]) for word in words]


def _shared_names(tables: list["_Table"]) -> tuple[list[str] | None, list[str]]:
    """Return the class names of all files, in the order of the first that has some, and remarks for the user."""
    first = tables[0]
    for table in tables:
        if table.label != first.label:
            raise InputError(
                f"{first.file} has its label in column {first.label}, {table.file} in {table.label}, which may mean "
                f"something else; call both `label`"
            )
    named_tables = [table for table in tables if table.names]
    if not named_tables:
        return None, []
    names = named_tables[0].names or []
    for table in named_tables:
        repeated = [name for name, count in Counter(table.names).items() if count > 1]
        if repeated:
            raise InputError(f"{table.file} calls two classes {repeated[0]}; give each class a name of its own")
        differing = sorted(set(names) ^ set(table.names or []))
        if differing:
            raise InputError(
                f"{table.file} has other class names than {named_tables[0].file}: only one of them has "
                f"{some(differing)}; make them the same"
            )
    unnamed = [table.file for table in tables if not table.names]
    if unnamed:
        return names, [f"{some(unnamed)}: no class names; its labels are read as those of {named_tables[0].file}"]
    return names, []


def _class_names(names: list[str] | None, label: np.ndarray, official: np.ndarray, top: Path) -> list[str]:
    trained = np.unique(label[~official])
    if names is not None:
        highest = len(names) - 1
    elif len(trained):
        gaps = np.flatnonzero(trained != np.arange(len(trained)))
        if len(gaps):
            raise InputError(
                f"{top} has no training image of class {gaps[0]}, but of class {trained[-1]}; "
                f"number the classes from 0 without gaps"
            )
        highest, names = len(trained) - 1, [str(number) for number in trained]
    else:
        return []
    if len(label) and label.max() > highest:
        raise InputError(f"{top} has the label {label.max()}; the last of its {highest + 1} classes is {highest}")
    return names


@dataclass(frozen=True)
class _Facts:
    label: np.ndarray
    split: list[Any] | None
    path: list[str | None] | None


@dataclass(frozen=True)
class _Table:
    """This is one Parquet file of encoded images, with the names of its columns."""

    file: Path
    rows: int
    image: str
    label: str
    in_struct: bool
    has_path: bool
    has_split: bool
    names: list[str] | None

    @staticmethod
    def of(file: Path) -> "_Table":
        with _readable(file), pq.ParquetFile(file) as opened:
            schema, rows, metadata = opened.schema_arrow, opened.metadata.num_rows, opened.metadata
        image = _image_column(file, schema)
        label = _label_column(file, schema)
        kind = schema.field(image).type
        fields = [field.name for field in kind] if pa.types.is_struct(kind) else []
        if "path" in fields and _all_null(metadata, f"{image}.bytes"):
            raise InputError(
                f"{file} has only the paths of its images: {image}.bytes is null in every row; write the bytes of the "
                f"image files there, or read the files themselves with data.source folder"
            )
        return _Table(
            file, rows, image, label, bool(fields), "path" in fields, "split" in schema.names, _hf_names(schema, label)
        )

    def facts(self, with_paths: bool) -> Iterator[_Facts]:
        """Yield labels, split words and paths, a piece at a time, without reading the images."""
        columns = [self.label] + ["split"] * self.has_split + [f"{self.image}.path"] * with_paths
        row = 0
        with _readable(self.file), pq.ParquetFile(self.file) as opened:
            for batch in opened.iter_batches(65536, columns=columns):
                label = batch.column(self.label)
                if label.null_count:
                    self._fail(row + int(np.argmax(label.is_null())), f"column {self.label} is null; give it a class")
                numbers = label.cast(pa.int64()).to_numpy()
                if len(numbers) and numbers.min() < 0:
                    at = int(np.argmax(numbers < 0))
                    self._fail(row + at, f"column {self.label} is {numbers[at]}; classes are numbered from 0")
                split = batch.column("split").to_pylist() if self.has_split else None
                path = pc.struct_field(batch.column(self.image), "path").to_pylist() if with_paths else None
                yield _Facts(numbers, split, path)
                row += len(numbers)

    def renumbered(self, label: np.ndarray, names: list[str] | None) -> np.ndarray:
        """Renumber labels from this file's order of the class names to that of `names`."""
        if names is None or self.names is None or self.names == names:
            return label
        if len(label) and label.max() >= len(names):
            raise InputError(
                f"{self.file} has the label {label.max()}; the last of its {len(names)} classes is {len(names) - 1}"
            )
        position = {name: number for number, name in enumerate(names)}
        return np.array([position[name] for name in self.names], np.int64)[label]

    def encoded(self, rows: np.ndarray) -> Iterator[list[tuple[str, Encoded]]]:
        """Yield the encoded images of ascending rows, each with its name for an error, a few at a time."""
        start = 0
        with _readable(self.file), pq.ParquetFile(self.file) as opened:
            for number in range(opened.num_row_groups):
                end = start + opened.metadata.row_group(number).num_rows
                if np.searchsorted(rows, start) < np.searchsorted(rows, end):
                    for batch in opened.iter_batches(BATCH, row_groups=[number], columns=[self.image]):
                        batch_rows = rows[slice(*np.searchsorted(rows, [start, start + len(batch)]))]
                        yield self._named(batch.column(0), batch_rows, start)
                        start += len(batch)
                start = end

    def _named(self, column: pa.Array, rows: np.ndarray, start: int) -> list[tuple[str, Encoded]]:
        encoded = pc.struct_field(column, "bytes") if self.in_struct else column
        return [(f"{self.file}: row {row}", encoded[row - start].as_py()) for row in rows.tolist()]

    def _fail(self, row: int, problem: str) -> None:
        raise InputError(f"{self.file}: row {row}: {problem}")


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{file} is no Parquet file, or a broken one ({reason(error)}); fetch it again") from error


def _all_null(metadata: pq.FileMetaData, column: str) -> bool:
    """Tell whether a column of primitive values has rows and all are null, by the file's own statistics."""
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    chunks = [group.column(number) for group in groups for number in range(group.num_columns)]
    statistics = [(chunk.num_values, chunk.statistics) for chunk in chunks if chunk.path_in_schema == column]
    return bool(statistics) and all(stats and stats.null_count == values > 0 for values, stats in statistics)


def _image_column(file: Path, schema: pa.Schema) -> str:
    def holds_images(kind: pa.DataType) -> bool:
        if pa.types.is_struct(kind):
            return any(field.name == "bytes" and holds_images(field.type) for field in kind)
        return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))

    names = [field.name for field in schema if holds_images(field.type)]
    return _column(file, schema, names, ("image", "img"), "image", "struct<bytes: binary, path: string> or binary")


def _label_column(file: Path, schema: pa.Schema) -> str:
    names = [field.name for field in schema if pa.types.is_integer(field.type) and not field.name.startswith("__index")]
    for name in ("label", "labels"):
        if name in schema.names and name not in names:
            raise InputError(f"{file}: column {name} is {schema.field(name).type}; it must hold integers from 0")
    return _column(file, schema, names, ("label", "labels"), "label", "an integer")


def _column(file: Path, schema: pa.Schema, names: list[str], preferred: tuple[str, ...], noun: str, kind: str) -> str:
    """Return the column of a preferred name, or else the only candidate.  noun, kind: what it is, for errors."""
    for name in preferred:
        if name in names:
            return name
    if len(names) == 1:
        return names[0]
    columns = ", ".join(f"{field.name}: {field.type}" for field in schema)
    problem = f"{len(names)} columns that may be the {noun} ({', '.join(names)})" if names else f"no {noun} column"
    raise InputError(f"{file} has {problem}; call one `{noun}`, of type {kind}. It has {columns or 'no columns'}")


def _hf_names(schema: pa.Schema, label: str) -> list[str] | None:
    """Return the class names in the metadata that Hugging Face writes into a Parquet file; None without them."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = features[label]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    if isinstance(names, dict):
        names = [names[key] for key in sorted(names, key=int)]
    return [str(name) for name in names] or None


def _from_tables(tables: list[_Table], order: np.ndarray, rows: np.ndarray) -> Iterator[list[tuple[str, Encoded]]]:
    """Yield the encoded images of ascending rows of the source, in batches.

    order: (N,) the place of each row of the source, counted over all files in turn.
    """
    ends = np.cumsum([table.rows for table in tables])
    places = order[rows]
    numbers = np.searchsorted(ends, places, side="right")
    # The official splits may share files, so a file may be gone through once for each of them.
    turns = np.flatnonzero((np.diff(numbers, prepend=-1) != 0) | (np.diff(places, prepend=-1) < 0))
    for begin, end in pairwise([*turns, len(rows)]):
        table = tables[numbers[begin]]
        start = ends[numbers[begin]] - table.rows
        yield from table.encoded(places[begin:end] - start)
