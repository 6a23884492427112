"""A Parquet file, or a folder of them, as a source: a column of encoded images and one of class numbers."""

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
from sparring.data.sources import BATCH, OFFICIAL, SPLIT_WORDS, Encoded, Source, existing, heldout, some
from sparring.params.errors import InputError, reason
from sparring.params.names import PARAMS_FILE
from sparring.params.sections import Data


def read(data: Data) -> Source:
    """The images below `data.path`, numbered by the class names of their files where these have some.

    Raises InputError for no file, a broken one, columns or labels that cannot be told, or other names in other files.
    """
    top = existing(data)
    files = [top]
    if top.is_dir():
        files = sorted(each for each in top.rglob("*.parquet") if not each.name.startswith(".") and each.is_file())
    if not files:
        raise InputError(f"{PARAMS_FILE}: data.path is {top}, which has no .parquet file in it")
    tables = [_Table.of(file) for file in files]
    named, remarks = _shared_names(tables)
    with_paths = data.group_pattern is not None and all(table.has_path for table in tables)
    label: list[np.ndarray] = []
    words: list[str | None] = []
    names: list[str | None] = []
    paths: list[str | None] = []
    with progress.bar("prepare: labels", sum(table.rows for table in tables)) as advance:
        for table in tables:
            by_name = _official_by_name(table.file.relative_to(top) if top.is_dir() else Path(table.file.name))
            for part in table.facts(with_paths):
                label.append(table.renumbered(part.label, named))
                names += [by_name] * len(part.label)
                words += [by_name] * len(part.label) if part.split is None else [str(each) for each in part.split]
                paths += part.path or []
                advance(len(part.label))
    kind = _official(words, top) or _official(names, top) or ["train"] * len(names)
    order = np.argsort([OFFICIAL.index(each) for each in kind], kind="stable").astype(np.int64)
    labels = np.concatenate([np.empty(0, np.int64), *label])[order]
    official = heldout(np.array(kind)[order])
    classes = _class_names(named, labels, official, top)
    ordered = [paths[row] for row in order] if with_paths else None
    return Source(str(top), labels, official, classes, ordered, partial(_from_tables, tables, order), remarks)


def _official_by_name(file: Path) -> str | None:
    """The split that a file's name or its folder's tells, as in train-00000-of-00001.parquet; None for neither."""
    words = re.split(r"[^a-z]+", file.stem.lower()) + re.split(r"[^a-z]+", file.parent.name.lower())
    return next((SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS), None)


def _official(words: list[str | None], top: Path) -> list[str]:
    """Official split of each row; empty where no row has a word for one."""
    known = {word: SPLIT_WORDS.get(str(word).lower()) for word in dict.fromkeys(words)}
    if not any(known.values()):
        return []
    strange = [word for word, official in known.items() if official is None]
    if strange:
        told = "rows that no file name or split column places" if strange[0] is None else f"the split {strange[0]}"
        raise InputError(
            f"{top} has {told}, beside {', '.join(filter(None, known.values()))}; use {', '.join(OFFICIAL)}"
        )
    return [str(known[word]) for word in words]


def _shared_names(tables: list["_Table"]) -> tuple[list[str] | None, list[str]]:
    """The class names of all files, in the order of the first that has some, and remarks for the user."""
    first = tables[0]
    for table in tables:
        if table.label != first.label:
            raise InputError(
                f"{first.file} has its label in column {first.label}, {table.file} in {table.label}, which may mean "
                f"something else; call both `label`"
            )
    named = [table for table in tables if table.names]
    if not named:
        return None, []
    names = named[0].names or []
    for table in named:
        twice = [name for name, count in Counter(table.names).items() if count > 1]
        if twice:
            raise InputError(f"{table.file} calls two classes {twice[0]}; give each class a name of its own")
        other = sorted(set(names) ^ set(table.names or []))
        if other:
            raise InputError(
                f"{table.file} has other class names than {named[0].file}: only one of them has {some(other)}; "
                f"make them the same"
            )
    unnamed = [table.file for table in tables if not table.names]
    if unnamed:
        return names, [f"{some(unnamed)}: no class names; its labels are read as those of {named[0].file}"]
    return names, []


def _class_names(named: list[str] | None, label: np.ndarray, official: np.ndarray, top: Path) -> list[str]:
    trained = np.unique(label[~official])
    if named is not None:
        highest = len(named) - 1
    elif len(trained):
        gaps = np.flatnonzero(trained != np.arange(len(trained)))
        if len(gaps):
            raise InputError(
                f"{top} has no training image of class {gaps[0]}, but of class {trained[-1]}; "
                f"number the classes from 0 without gaps"
            )
        highest, named = len(trained) - 1, [str(number) for number in trained]
    else:
        return []
    if len(label) and label.max() > highest:
        raise InputError(f"{top} has the label {label.max()}; the last of its {highest + 1} classes is {highest}")
    return named


@dataclass(frozen=True)
class _Facts:
    label: np.ndarray
    split: list[Any] | None
    path: list[str | None] | None


@dataclass(frozen=True)
class _Table:
    """One Parquet file of encoded images, with the names of its columns."""

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
        fields = [each.name for each in kind] if pa.types.is_struct(kind) else []
        if "path" in fields and _all_null(metadata, f"{image}.bytes"):
            raise InputError(
                f"{file} has only the paths of its images: {image}.bytes is null in every row; write the bytes of the "
                f"image files there, or read the files themselves with data.source folder"
            )
        return _Table(
            file, rows, image, label, bool(fields), "path" in fields, "split" in schema.names, _hf_names(schema, label)
        )

    def facts(self, with_paths: bool) -> Iterator[_Facts]:
        """Labels, split words and paths, a piece at a time; the images are not touched."""
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
        """Labels that number this file's class names as labels that number `names`, the same ones in another order."""
        if names is None or self.names is None or self.names == names:
            return label
        if len(label) and label.max() >= len(names):
            raise InputError(
                f"{self.file} has the label {label.max()}; the last of its {len(names)} classes is {len(names) - 1}"
            )
        position = {name: number for number, name in enumerate(names)}
        return np.array([position[name] for name in self.names], np.int64)[label]

    def encoded(self, rows: np.ndarray) -> Iterator[list[tuple[str, Encoded]]]:
        """The encoded images of ascending rows, each with its name for an error, a few at a time."""
        start = 0
        with _readable(self.file), pq.ParquetFile(self.file) as opened:
            for number in range(opened.num_row_groups):
                end = start + opened.metadata.row_group(number).num_rows
                if np.searchsorted(rows, start) < np.searchsorted(rows, end):
                    for batch in opened.iter_batches(BATCH, row_groups=[number], columns=[self.image]):
                        here = rows[slice(*np.searchsorted(rows, [start, start + len(batch)]))]
                        yield self._named(batch.column(0), here, start)
                        start += len(batch)
                start = end

    def _named(self, column: pa.Array, rows: np.ndarray, start: int) -> list[tuple[str, Encoded]]:
        encoded = pc.struct_field(column, "bytes") if self.in_struct else column
        return [(f"{self.file}: row {row}", encoded[row - start].as_py()) for row in rows.tolist()]

    def _fail(self, row: int, what: str) -> None:
        raise InputError(f"{self.file}: row {row}: {what}")


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{file} is no Parquet file, or a broken one ({reason(error)}); fetch it again") from error


def _all_null(metadata: pq.FileMetaData, column: str) -> bool:
    """Whether a column of primitive values has rows, all of them null, by the file's own statistics."""
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    chunks = [group.column(number) for group in groups for number in range(group.num_columns)]
    statistics = [(chunk.num_values, chunk.statistics) for chunk in chunks if chunk.path_in_schema == column]
    return bool(statistics) and all(known and known.null_count == values > 0 for values, known in statistics)


def _image_column(file: Path, schema: pa.Schema) -> str:
    def holds_images(kind: pa.DataType) -> bool:
        if pa.types.is_struct(kind):
            return any(each.name == "bytes" and holds_images(each.type) for each in kind)
        return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))

    found = [each.name for each in schema if holds_images(each.type)]
    return _the_one(file, schema, found, ("image", "img"), "image", "struct<bytes: binary, path: string> or binary")


def _label_column(file: Path, schema: pa.Schema) -> str:
    numbers = [each.name for each in schema if pa.types.is_integer(each.type) and not each.name.startswith("__index")]
    for name in ("label", "labels"):
        if name in schema.names and name not in numbers:
            raise InputError(f"{file}: column {name} is {schema.field(name).type}; it must hold integers from 0")
    return _the_one(file, schema, numbers, ("label", "labels"), "label", "an integer")


def _the_one(file: Path, schema: pa.Schema, found: list[str], preferred: tuple[str, ...], what: str, kind: str) -> str:
    for name in preferred:
        if name in found:
            return name
    if len(found) == 1:
        return found[0]
    columns = ", ".join(f"{each.name}: {each.type}" for each in schema)
    many = f"{len(found)} columns that may be the {what} ({', '.join(found)})" if found else f"no {what} column"
    raise InputError(f"{file} has {many}; call one `{what}`, of type {kind}. It has {columns or 'no columns'}")


def _hf_names(schema: pa.Schema, label: str) -> list[str] | None:
    """Class names from the metadata that Hugging Face writes into a Parquet file; None without."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = features[label]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    if isinstance(names, dict):
        names = [names[key] for key in sorted(names, key=int)]
    return [str(name) for name in names] or None


def _from_tables(tables: list[_Table], order: np.ndarray, rows: np.ndarray) -> Iterator[list[tuple[str, Encoded]]]:
    """order: (N,) where each row of the source lies, counted over all files in turn."""
    ends = np.cumsum([table.rows for table in tables])
    places = order[rows]
    numbers = np.searchsorted(ends, places, side="right")
    # The official splits may share files, so a file may be gone through once for each of them.
    turns = np.flatnonzero((np.diff(numbers, prepend=-1) != 0) | (np.diff(places, prepend=-1) < 0))
    for begin, end in pairwise([*turns, len(rows)]):
        table = tables[numbers[begin]]
        start = ends[numbers[begin]] - table.rows
        yield from table.encoded(places[begin:end] - start)
