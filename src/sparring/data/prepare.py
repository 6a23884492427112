"""This module reads a data set and writes it as stores, split by class (and group).

A source is read twice. The first pass reads labels and paths only, which is enough to split. The second pass decodes
the images of the splits and no others, so that a thousand images of a large set take seconds. Where images in two
splits turn out equal, the split is drawn again, and only the images that are new to it are read.
"""

import os
import shutil
import sys
from functools import partial
from hashlib import blake2b
from pathlib import Path

import numpy as np
import torch

from sparring import progress, store
from sparring.data import decode, faces, known, parquet, signs, splits
from sparring.data import folder as folders
from sparring.data.sources import Source, some
from sparring.layout import HERE, Layout
from sparring.params import Params
from sparring.params.errors import InputError, one_line
from sparring.params.names import SPLITS, outputs
from sparring.params.sections import Data

FEW_LEVELS = 16  # An image whose levels span no more is nearly constant, as one of 12 bits stored in 16 bits is.


def prepare(params: Params, layout: Layout = HERE) -> None:
    """Read the source that `data` names and write its four splits to data/clean, rows sorted by index.

    Everything is read and checked before the first file is written, so bad input leaves the old files alone.

    Raises InputError, in one line, for a source that is missing, broken, or without training images of some class.
    """
    with progress.timed(layout, "prepare", torch.device("cpu")) as done:
        source = open_source(params.data)
        rows, image, remarks = _draw(source, params.data, params.seed)
        for remark in source.remarks + remarks:
            print(f"warning: {one_line(remark)}", file=sys.stderr)
        _write_all(params, layout.clean, source, rows, image)
        print(f"prepare: a classifier's outputs are {outputs(source.classes)}")
        sizes = ", ".join(f"{len(rows[name]):,} {name}" for name in SPLITS)
        done(len(image), f"{sizes} images of {len(source.classes)} classes")


def open_source(data: Data) -> Source:
    """Open the data set that `data.source` names, with its labels read and checked, and its images not yet decoded.

    Raises InputError for a source that is missing or broken, or whose labels do not number the classes 0, 1, 2, …
    """
    source = read_labels(data)
    if source.heldout.all():
        raise InputError(f"{source.name} has no training images, only others; add some, or call those `train`")
    if len(source.classes) < 2:
        raise InputError(f"{source.name} has one class only ({source.classes[0]}); a classifier needs at least two")
    trained = np.bincount(source.label[~source.heldout], minlength=len(source.classes))
    missing = [name for name, count in zip(source.classes, trained, strict=True) if not count]
    if missing:
        raise InputError(
            f"{source.name} has no training image of {splits.class_list(missing)}; add some, or "
            f"{'remove the folder' if data.source == 'folder' else 'number the classes from 0 without gaps'}"
        )
    return source


def read_labels(data: Data, download: bool = True) -> Source:
    """Open a data set as `open_source` does, without the checks that only training needs.

    It may have test images alone. Where neither they nor a file say how many classes there are, `classes` is empty.
    download: whether to download a data set of torchvision that is absent.
    """
    readers = {
        "digits": known.digits,
        "parquet": parquet.read,
        "folder": folders.read,
        "gtsrb": signs.gtsrb,
        "belgium": signs.belgium,
        "orl": faces.orl,
        "yale": faces.yale,
    }
    readers |= dict.fromkeys(known.TORCHVISION, partial(known.of_torchvision, download=download))
    try:
        source = readers[data.source](data)
    except PermissionError as error:
        raise InputError(f"{error.filename} may not be read; change its permissions") from error
    if not len(source.label):
        raise InputError(f"{source.name} holds no images; name a data set that does in data.path")
    return source


def _draw(source: Source, data: Data, seed: int) -> tuple[dict[str, np.ndarray], np.ndarray, list[str]]:
    """Return the rows of each split, their images in the order of the splits, (N, S, S, 3), and remarks for the user.

    Equal images are sought among those of the splits. Those that lie in different splits are joined, and all is drawn
    again; new images may then equal others, so this repeats until no two splits share an image.
    """
    equal = np.arange(len(source.label))  # the first row known to have the same image
    first_row: dict[bytes, int] = {}
    several: list[str] = []
    rows, remarks = splits.split(source, data, seed)
    image, decoded_rows = np.empty((0, data.image_size, data.image_size, 3), np.uint8), np.empty(0, np.int64)
    while True:
        wanted_rows = np.concatenate([rows[name] for name in SPLITS])
        image = _read(source, data, wanted_rows, decoded_rows, image, several)
        decoded_rows = wanted_rows
        for row, pixels in sorted(zip(wanted_rows.tolist(), image, strict=True), key=lambda pair: pair[0]):
            equal[row] = first_row.setdefault(blake2b(pixels.tobytes(), digest_size=16).digest(), row)
        carved = {name: part[~source.heldout[part]] for name, part in rows.items()}
        if not splits.share_images(carved, equal):
            return rows, image, remarks + _remarks(image, several) + splits.remarks_on_equal(source, rows, equal)
        rows, remarks = splits.split(source, data, seed, equal)


def _read(
    source: Source, data: Data, rows: np.ndarray, old_rows: np.ndarray, old_images: np.ndarray, several: list[str]
) -> np.ndarray:
    """Return the images of rows, in their order, (N, S, S, 3). The source is read once, front to back.

    old_rows, old_images: rows that are not read again, and their images.
    several: as in `decode.decoded`.
    """
    position = {row: number for number, row in enumerate(old_rows.tolist())}
    reused = np.array([position.get(row, -1) for row in rows.tolist()], np.int64)
    images = np.empty((len(rows), *old_images.shape[1:]), np.uint8)
    images[reused >= 0] = old_images[reused[reused >= 0]]
    order = np.argsort(rows)
    order = order[reused[order] < 0]
    done = 0
    with progress.bar("prepare: images", len(order)) as advance:
        for batch in decode.decoded(source.read(rows[order]), data.image_size, data.background, several):
            images[order[done : done + len(batch)]] = batch
            done += len(batch)
            advance(len(batch))
    return images


def _remarks(image: np.ndarray, several: list[str]) -> list[str]:
    remarks = []
    if several:
        names = some(sorted(set(several)), 3)
        remarks.append(f"images with several frames or pages, of which the first is taken: {names}")
    flat = int((np.ptp(image.reshape(len(image), -1), axis=1) <= FEW_LEVELS).sum())
    if 2 * flat > len(image):
        remarks.append(
            f"{flat:,} of {len(image):,} images are nearly constant: their levels span {FEW_LEVELS} of 255 or less; "
            f"look at some, and at the range of their pixels"
        )
    return remarks


def _write_all(params: Params, folder: Path, source: Source, rows: dict[str, np.ndarray], image: np.ndarray) -> None:
    """Write the four files beside their folder, then move them in, so that a full disk leaves no mix of old and new."""
    staging = folder.with_name(f".{folder.name}.new")
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
        folder.mkdir(parents=True, exist_ok=True)
        for name in SPLITS:
            os.replace(staging / f"{name}.parquet", folder / f"{name}.parquet")
    finally:
        shutil.rmtree(staging, ignore_errors=True)
