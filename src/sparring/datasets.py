"""Data sets in, stores out: digits, CIFAR-10, Parquet files and folders of images, split by class (and group).

A source is read twice. The first time only labels and paths are looked at, which is enough to split; the second time
the images that a split wants are decoded, and no others: a thousand images of a large set take seconds.
"""

import io
import json
import os
import re
import shutil
import sys
import tarfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from sparring import device, progress, store
from sparring.params import PARAMS_FILE, SPLITS, Data, InputError, Params, root

CLEAN = Path("data/clean")
DOWNLOADS = "data/downloads"
MOST_PIXELS = 50_000_000  # of one encoded image: a small file can claim to be a picture that fills the memory
THREADS = 4
BATCH = 128  # encoded images in memory at a time
SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "test": "test",
    "testing": "test",
}
OFFICIAL = ("train", "validation", "test")  # the order of the index: training rows come first, test rows last


@dataclass(frozen=True)
class Source:
    """A data set of N images before it is split; rows are counted over all of it, official training rows first.

    label: (N,) int64, each the position of a name in `classes`.  heldout: (N,) bool, the official test images.
    path: N paths, or None where images have none (or nobody needs them).
    read: from M ascending rows to consecutive batches of images, (m, S, S, 3) uint8, M in all.
    """

    name: str
    label: np.ndarray
    heldout: np.ndarray
    classes: list[str]
    path: Sequence[str | None] | None
    read: Callable[[np.ndarray], Iterator[np.ndarray]]


def prepare(params: Params) -> None:
    """Read the source that `data` names and write its four splits to data/clean, rows sorted by index.

    Everything is read and checked before the first file is written, so bad input leaves the old files alone.

    Raises InputError, in one line, for a source that is missing, broken, or without training images of some class.
    """
    with progress.timed("prepare", torch.device("cpu")) as done, _strict_pillow():
        source = open_source(params.data)
        rows, remarks = split(source, params.data, params.seed)
        wanted = np.concatenate([rows[name] for name in SPLITS])
        image = _read_all(source, wanted, params.data.image_size)
        for remark in remarks:
            print(f"warning: {remark}", file=sys.stderr)
        _write_all(params, source, rows, image)
        sizes = ", ".join(f"{len(rows[name]):,} {name}" for name in SPLITS)
        done(len(wanted), f"{sizes} images of {len(source.classes)} classes")


def open_source(data: Data) -> Source:
    """The data set that `data.source` names, its labels read and checked, its images not yet decoded.

    Raises InputError for a source that is missing or broken, or whose labels do not number the classes 0, 1, 2, …
    """
    readers = {"digits": _digits, "cifar10": _cifar10, "parquet": _parquet, "folder": _folder}
    try:
        source = readers[data.source](data)
    except PermissionError as error:
        raise InputError(f"{error.filename} may not be read; change its permissions") from error
    if not len(source.label):
        raise InputError(f"{source.name} holds no images; name a data set that does in data.path")
    if source.heldout.all():
        raise InputError(f"{source.name} has no training images, only others; add some, or call those `train`")
    if len(source.classes) < 2:
        raise InputError(f"{source.name} has one class only ({source.classes[0]}); a classifier needs at least two")
    trained = np.bincount(source.label[~source.heldout], minlength=len(source.classes))
    missing = [name for name, count in zip(source.classes, trained, strict=True) if not count]
    if missing:
        raise InputError(
            f"{source.name} has no training image of {_class_list(missing)}; add some, or number the classes "
            f"from 0 without gaps"
        )
    return source


def split(source: Source, data: Data, seed: int) -> tuple[dict[str, np.ndarray], list[str]]:
    """Rows of the source for each of the four splits, ascending, and remarks for the user.

    Validation and test are carved from the official training images, heldout too if there is no official test set.

    Raises InputError for a class that gets no training image, or a path without a group.
    """
    sizes = {name: int(getattr(data, name)) for name in SPLITS}
    groups = None
    if data.group_pattern is not None:
        groups = _groups(source, data.group_pattern)
    pool, official = np.flatnonzero(~source.heldout), np.flatnonzero(source.heldout)
    carved = sizes if not len(official) else {name: size for name, size in sizes.items() if name != "heldout"}
    label = source.label[pool]
    parts = carve(label, carved, seed, None if groups is None else [groups[row] for row in pool])
    rows = {name: pool[part] for name, part in parts.items()}
    if len(official):
        rows["heldout"] = official[carve(source.label[official], {"heldout": sizes["heldout"]}, seed)["heldout"]]

    count = {name: np.bincount(source.label[rows[name]], minlength=len(source.classes)) for name in SPLITS}
    untrained = [name for name, images in zip(source.classes, count["train"], strict=True) if not images]
    if untrained:
        bound = "" if groups is None else " (data.group_pattern keeps groups together)"
        raise InputError(
            f"{PARAMS_FILE}: data.train is {data.train}; that leaves {_class_list(untrained)} without training "
            f"images{bound}; make it larger, or the other splits smaller"
        )
    return rows, _remarks(source, sizes, carved, rows, count)


def carve(
    label: np.ndarray, sizes: dict[str, int], seed: int, groups: Sequence[str] | None = None
) -> dict[str, np.ndarray]:
    """Disjoint parts of one pool, stratified by class: a function of the arguments alone.

    label: (N,) of small integers.  sizes: images a split; if the pool has fewer than all of them, they shrink in
    proportion.  Without groups the (shrunk) sizes are met exactly, and each class has in each part its share of
    the pool to within three images; every class gets an image of `train` before another gets its second.
    groups: N names, with sizes that have `train`; no group has images in two parts. A part may use some images of a
    group only, the rest stay unused; parts may fall short of their sizes, or be empty where a class is one group.
    `train` takes what the others leave, up to the size that was asked for.
    Returns ascending positions in `label`.
    """
    sizes = {name: sizes[name] for name in SPLITS if name in sizes}  # train has its share of every class first
    count = np.bincount(label, minlength=1)
    shrunk = dict(sizes)
    if sum(sizes.values()) > len(label):
        parts = _in_proportion(len(label), np.array(list(sizes.values())))
        shrunk = dict(zip(sizes, parts.tolist(), strict=True))
    quotas = _quotas(count, shrunk)
    home = np.full(len(label), -1)  # the part that an image may go to, by position in sizes; -1 for any
    if groups is not None:
        home = _homes(label, groups, quotas, seed)
        available = np.bincount(label[home == list(sizes).index("train")], minlength=len(count))
        wanted = min(sizes["train"], int(available.sum()))
        quotas["train"] = _everyone(_in_proportion(wanted, available), available)
    chosen: dict[str, list[np.ndarray]] = {name: [] for name in sizes}
    for number in range(len(count)):
        rows = np.flatnonzero(label == number)
        rows = rows[device.rng(seed, "split", *sizes, number).permutation(len(rows))]
        for position, name in enumerate(sizes):
            mine = rows[(home[rows] == position) | (home[rows] < 0)][: quotas[name][number]]
            chosen[name].append(mine)
            rows = rows[~np.isin(rows, mine)]
    return {name: np.sort(np.concatenate(parts)) for name, parts in chosen.items()}


def _in_proportion(total: int, weight: np.ndarray) -> np.ndarray:
    """`total` things dealt out in proportion to the weights by largest remainder; nobody gets more than its weight."""
    whole = int(weight.sum())
    if not whole:
        return np.zeros(len(weight), np.int64)
    share, rest = np.divmod(weight.astype(np.int64) * total, whole)
    share[np.argsort(-rest, kind="stable")[: total - share.sum()]] += 1
    return share


def _quotas(count: np.ndarray, sizes: dict[str, int]) -> dict[str, np.ndarray]:
    """Images of each class for each part: the rows add up to at most `count`, the columns to the sizes exactly."""
    left = _everyone(_in_proportion(sum(sizes.values()), count), count)
    quotas = {}
    for name, size in sizes.items():
        share = _in_proportion(size, left)
        quotas[name] = _everyone(share, left) if name == "train" else share
        left = left - quotas[name]
    return quotas


def _everyone(share: np.ndarray, available: np.ndarray) -> np.ndarray:
    """The same total, but a class with images goes away empty only where there are fewer places than classes."""
    share = share.copy()
    for number in np.flatnonzero((share == 0) & (available > 0)):
        richest = int(np.argmax(share))
        if share[richest] > 1:
            share[richest] -= 1
            share[number] += 1
    return share


def _homes(label: np.ndarray, groups: Sequence[str], quotas: dict[str, np.ndarray], seed: int) -> np.ndarray:
    """(N,) the part, as its position in `quotas`, that each image's group may go to."""
    members: dict[str, list[int]] = {}
    for row, name in enumerate(groups):
        members.setdefault(name, []).append(row)
    names = sorted(members)
    shuffled = [names[number] for number in device.rng(seed, "split", *quotas, "groups").permutation(len(names))]
    classes = {name: Counter(label[rows].tolist()) for name, rows in members.items()}
    home: dict[str, str] = {}
    # A class that train never sees is an error, so train has first choice: one group of every class.
    trained: set[int] = set()
    for name in shuffled:
        if not trained.issuperset(classes[name]):
            home[name] = "train"
            trained.update(classes[name])
    # Then the others fill up, the largest first: where groups are scarce, validation is what we can do without.
    for part in sorted(quotas.keys() - {"train"}, key=lambda part: (-int(quotas[part].sum()), part)):
        left = quotas[part].copy()
        for name in shuffled:
            most = min(classes[name], key=lambda number: (-classes[name][number], number))
            if name not in home and left[most] > 0:
                home[name] = part
                for number, images in classes[name].items():
                    left[number] -= images
    position = {part: number for number, part in enumerate(quotas)}
    homes = np.empty(len(label), np.int64)
    for name, rows in members.items():
        homes[rows] = position[home.get(name, "train")]
    return homes


def _groups(source: Source, pattern: str) -> list[str]:
    where = f"{PARAMS_FILE}: data.group_pattern is {pattern}"
    if source.path is None:
        raise InputError(f"{where}; the images of {source.name} have no paths, so set it to null")
    groups = []
    for row, path in enumerate(source.path):
        found = None if path is None else re.search(pattern, path)
        if (found is None or found[1] is None) and not source.heldout[row]:
            raise InputError(f"{where}; it finds no group in the path {path} of {source.name}; mend the pattern")
        groups.append(found[1] if found and found[1] is not None else "")
    return groups


def _remarks(
    source: Source,
    sizes: dict[str, int],
    carved: dict[str, int],
    rows: dict[str, np.ndarray],
    count: dict[str, np.ndarray],
) -> list[str]:
    remarks = []
    heldout = int(source.heldout.sum())
    pools = {"training": (len(source.label) - heldout, list(carved)), "test": (heldout, ["heldout"])}
    for pool, (images, names) in pools.items():
        asked = sum(sizes[name] for name in names)
        if images and images < asked:
            got = ", ".join(f"{name} {len(rows[name])} of {sizes[name]}" for name in names)
            remarks.append(f"{source.name} has {images} {pool} images, not the {asked} asked for; shrunk to {got}")
    for name in SPLITS:
        if sizes[name] and not len(rows[name]):
            remarks.append(f"data.{name} is {sizes[name]}, but the split is empty: too few images, or groups, for it")
    for name in ("test", "heldout"):
        absent = [each for each, images in zip(source.classes, count[name], strict=True) if not images]
        if len(rows[name]) and absent:
            remarks.append(f"{source.name}: no image of {_class_list(absent)} in split {name}")
    return remarks


def _class_list(names: list[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"class{'es' if len(names) > 1 else ''} {', '.join(names[:5])}{more}"


def _read_all(source: Source, wanted: np.ndarray, size: int) -> np.ndarray:
    """The wanted rows' images in the wanted order, (N, S, S, 3); the source is read once, front to back."""
    image = np.empty((len(wanted), size, size, 3), np.uint8)
    order = np.argsort(wanted)
    done = 0
    with progress.bar("prepare: images", len(wanted)) as advance:
        for batch in source.read(wanted[order]):
            image[order[done : done + len(batch)]] = batch
            done += len(batch)
            advance(len(batch))
    return image


def _write_all(params: Params, source: Source, rows: dict[str, np.ndarray], image: np.ndarray) -> None:
    """Write the four files beside their folder, then move them in: a full disk does not leave two old, two new."""
    staging = CLEAN.with_name(f".{CLEAN.name}.new")
    shutil.rmtree(staging, ignore_errors=True)
    metadata = {"shape": list(image.shape[1:]), "classes": source.classes, "source": params.data.source}
    start = 0
    try:
        for name in SPLITS:
            index = rows[name]
            images = store.Images(index, source.label[index], image[start : start + len(index)])
            shards = store.in_shards(images, params.store.shard_size)
            store.write(staging / f"{name}.parquet", shards, metadata | {"split": name})
            start += len(index)
        CLEAN.mkdir(parents=True, exist_ok=True)
        for name in SPLITS:
            os.replace(staging / f"{name}.parquet", CLEAN / f"{name}.parquet")
    finally:
        shutil.rmtree(staging, ignore_errors=True)


# Sources


def _digits(data: Data) -> Source:
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)
    label = digits.target.astype(np.int64)
    names = [str(name) for name in digits.target_names]
    read = partial(_from_pixels, pixels, data.image_size)
    return Source("data.source digits", label, np.zeros(len(label), bool), names, None, read)


def _cifar10(data: Data) -> Source:
    from torchvision.datasets import CIFAR10

    folder = root() / (data.path or DOWNLOADS)
    try:
        train, test = (CIFAR10(root=str(folder), train=part, download=True) for part in (True, False))
    except (RuntimeError, OSError, EOFError, HTTPException, tarfile.TarError) as error:
        raise InputError(
            f"data.source cifar10: no download of {CIFAR10.url} into {folder} ({_one_line(error)}); put the archive "
            f"there yourself, or read a copy with data.source parquet or folder"
        ) from error
    label = np.array([*train.targets, *test.targets], np.int64)
    heldout = np.arange(len(label)) >= len(train.targets)
    read = partial(_from_pixels, np.concatenate([train.data, test.data]), data.image_size)
    return Source("data.source cifar10", label, heldout, [str(name) for name in train.classes], None, read)


def _folder(data: Data) -> Source:
    top = _existing(data)
    if not top.is_dir():
        raise InputError(f"{PARAMS_FILE}: data.path is {top}, a file; source folder needs one folder a class below it")
    subfolders = _subfolders(top)
    trains = [each for each in subfolders if SPLIT_WORDS.get(each.name.lower()) == "train"]
    # A class may be called train: a folder of that name is a split only if its images lie in folders of their own.
    officially = any(_subfolders(each) and not _images_in(each) for each in trains)
    found: dict[str, dict[str, list[Path]]] = {name: {} for name in OFFICIAL}
    for folder in subfolders:
        kind = SPLIT_WORDS.get(folder.name.lower()) if officially else "train"
        if kind is None:
            if _images_below(folder):
                raise InputError(f"{folder} lies beside {trains[0].name}/ and is no split; call it test or validation")
            continue
        if officially and _images_in(folder):
            raise InputError(f"{_images_in(folder)[0]} lies in no class; put it in a folder named like its class")
        for each in _subfolders(folder) if officially else [folder]:
            found[kind].setdefault(each.name, []).extend(_images_below(each))
    classes = sorted(found["train"])
    if not any(files for kind in found.values() for files in kind.values()):
        inside = "images, but no class folders" if _images_in(top) else "no images"
        raise InputError(
            f"{PARAMS_FILE}: data.path is {top}, which has {inside}; it needs one folder a class, in it images"
        )
    files: list[Path] = []
    label: list[int] = []
    kinds: list[str] = []
    for kind in OFFICIAL:
        for name, images in sorted(found[kind].items()):
            if name not in classes and images:
                raise InputError(f"{images[0]} is of class {name}, which has no training images; it needs some")
            files += images
            label += [classes.index(name)] * len(images) if name in classes else []
            kinds += [kind] * len(images)
    paths = [file.relative_to(top).as_posix() for file in files]
    read = partial(_from_files, files, data.image_size)
    return Source(str(top), np.array(label, np.int64), _heldout(np.array(kinds)), classes, paths, read)


def _subfolders(folder: Path) -> list[Path]:
    return sorted(each for each in folder.iterdir() if each.is_dir() and not each.name.startswith((".", "__")))


def _images_in(folder: Path) -> list[Path]:
    known = Image.registered_extensions()
    files = (each for each in folder.iterdir() if each.suffix.lower() in known and not each.name.startswith("."))
    return sorted(each for each in files if each.is_file())


def _images_below(folder: Path) -> list[Path]:
    return sorted(_images_in(folder) + [file for each in _subfolders(folder) for file in _images_below(each)])


def _parquet(data: Data) -> Source:
    top = _existing(data)
    files = [top]
    if top.is_dir():
        files = sorted(each for each in top.rglob("*.parquet") if not each.name.startswith(".") and each.is_file())
    if not files:
        raise InputError(f"{PARAMS_FILE}: data.path is {top}, which has no .parquet file in it")
    tables = [_Table.of(file) for file in files]
    with_paths = data.group_pattern is not None and all(table.has_path for table in tables)
    label: list[np.ndarray] = []
    words: list[str | None] = []
    names: list[str | None] = []
    paths: list[str | None] = []
    with progress.bar("prepare: labels", sum(table.rows for table in tables)) as advance:
        for table in tables:
            by_name = _official_by_name(table.file.relative_to(top) if top.is_dir() else Path(table.file.name))
            for part in table.facts(with_paths):
                label.append(part.label)
                names += [by_name] * len(part.label)
                words += [by_name] * len(part.label) if part.split is None else [str(each) for each in part.split]
                paths += part.path or []
                advance(len(part.label))
    kind = _official(words, top) or _official(names, top) or ["train"] * len(names)
    order = np.argsort([OFFICIAL.index(each) for each in kind], kind="stable").astype(np.int64)
    labels = np.concatenate([np.empty(0, np.int64), *label])[order]
    read = partial(_from_tables, tables, order, data.image_size)
    heldout = _heldout(np.array(kind)[order])
    classes = _class_names(tables, labels, heldout, top)
    return Source(str(top), labels, heldout, classes, [paths[row] for row in order] if with_paths else None, read)


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


def _heldout(kind: np.ndarray) -> np.ndarray:
    """Which rows are held out: the test set, or the validation set where that is all there is."""
    return np.asarray(kind == ("test" if "test" in kind else "validation"), bool)


def _class_names(tables: list["_Table"], label: np.ndarray, heldout: np.ndarray, top: Path) -> list[str]:
    trained = np.unique(label[~heldout])
    named = next((table.names for table in tables if table.names), None)
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
            schema, rows = opened.schema_arrow, opened.metadata.num_rows
        image = _image_column(file, schema)
        label = _label_column(file, schema)
        kind = schema.field(image).type
        fields = [each.name for each in kind] if pa.types.is_struct(kind) else []
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

    def encoded(self, rows: np.ndarray) -> Iterator[list[tuple[str, bytes]]]:
        """The encoded images of ascending rows, each with its name for an error, a few at a time."""
        start = 0
        with _readable(self.file), pq.ParquetFile(self.file) as opened:
            for number in range(opened.num_row_groups):
                end = start + opened.metadata.row_group(number).num_rows
                if np.searchsorted(rows, start) < np.searchsorted(rows, end):
                    for batch in opened.iter_batches(BATCH, row_groups=[number], columns=[self.image]):
                        here = rows[slice(*np.searchsorted(rows, [start, start + len(batch)]))]
                        yield self._named(batch.column(0).take(pa.array(here - start)), here)
                        start += len(batch)
                start = end

    def _named(self, column: pa.Array, rows: np.ndarray) -> list[tuple[str, bytes]]:
        encoded = (pc.struct_field(column, "bytes") if self.in_struct else column).to_pylist()
        for row, each in zip(rows, encoded, strict=True):
            if each is None:
                self._fail(int(row), f"column {self.image} has no image (null); remove the row")
        return [(f"{self.file}: row {row}", each) for row, each in zip(rows, encoded, strict=True)]

    def _fail(self, row: int, what: str) -> None:
        raise InputError(f"{self.file}: row {row}: {what}")


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{file} is no Parquet file, or a broken one ({_one_line(error)}); fetch it again") from error


def _image_column(file: Path, schema: pa.Schema) -> str:
    def holds_images(kind: pa.DataType) -> bool:
        if pa.types.is_struct(kind):
            return any(each.name == "bytes" and holds_images(each.type) for each in kind)
        return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))

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


def _existing(data: Data) -> Path:
    path = root() / str(data.path)
    if not path.exists():
        raise InputError(f"{PARAMS_FILE}: data.path is {data.path}; there is no {path}")
    return path


# Images


def _from_pixels(pixels: np.ndarray, size: int, rows: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(rows), BATCH):
        yield np.stack([_at_size(Image.fromarray(each), size) for each in pixels[rows[start : start + BATCH]]])


def _from_files(files: list[Path], size: int, rows: np.ndarray) -> Iterator[np.ndarray]:
    named = [(str(files[row]), files[row]) for row in rows]
    yield from _decoded((named[start : start + BATCH] for start in range(0, len(named), BATCH)), size)


def _from_tables(tables: list[_Table], order: np.ndarray, size: int, rows: np.ndarray) -> Iterator[np.ndarray]:
    """order: (N,) where each row of the source lies, counted over all files in turn."""
    ends = np.cumsum([table.rows for table in tables])
    places = order[rows]
    numbers = np.searchsorted(ends, places, side="right")
    # The official splits may share files, so a file may be gone through once for each of them.
    turns = np.flatnonzero((np.diff(numbers, prepend=-1) != 0) | (np.diff(places, prepend=-1) < 0))
    for begin, end in zip(turns, [*turns[1:], len(rows)], strict=True):
        table = tables[numbers[begin]]
        start = ends[numbers[begin]] - table.rows
        yield from _decoded(table.encoded(places[begin:end] - start), size)


def _decoded(batches: Iterator[list[tuple[str, Any]]], size: int) -> Iterator[np.ndarray]:
    def several(named: list[tuple[str, Any]]) -> list[np.ndarray]:
        return [_decode(name, encoded, size) for name, encoded in named]

    with ThreadPoolExecutor(THREADS) as pool:
        for batch in batches:
            if batch:
                step = -(-len(batch) // THREADS)
                parts = pool.map(several, (batch[start : start + step] for start in range(0, len(batch), step)))
                yield np.stack([image for part in parts for image in part])


def _decode(name: str, encoded: bytes | Path, size: int) -> np.ndarray:
    """One encoded image (or its file) as (S, S, 3) uint8; `name` is for the error."""
    too_large = f"{name} has more than {MOST_PIXELS / 1e6:.0f} million pixels; make it smaller or remove it"
    try:
        with Image.open(io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded) as image:
            if image.width * image.height > MOST_PIXELS:
                raise InputError(too_large)
            ImageOps.exif_transpose(image, in_place=True)
            return _at_size(image, size)
    except InputError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(too_large) from error
    except Exception as error:  # Pillow's decoders let out whatever a broken file provokes: SyntaxError, struct.error …
        reason = "not in an image format" if isinstance(error, UnidentifiedImageError) else _one_line(error)
        raise InputError(f"{name} is no readable image ({reason}); mend it or remove it") from error


def _at_size(image: Image.Image, size: int) -> np.ndarray:
    if image.mode.startswith("I"):  # 16 bits, which Pillow would clip to the lowest 8
        image = Image.fromarray((np.clip(np.asarray(image), 0, 65535) / 257).round().astype(np.uint8))
    image = image.convert("RGB")
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR)  # Pillow's is antialiased when it shrinks
    return np.asarray(image)


@contextmanager
def _strict_pillow() -> Iterator[None]:
    """Bombs raise at the header, and Pillow's other remarks (on EXIF, palettes) stay off the screen."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
