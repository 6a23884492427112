"""The images of an audit: the test images of a data set where it has any, at the size that the model reads."""

import re
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from sparring import store
from sparring.data import decode, known, prepare
from sparring.data.sources import Source, location, some
from sparring.evaluation.whitebox import draw
from sparring.params.errors import InputError, one_line
from sparring.params.names import PARAMS_FILE
from sparring.params.sections import Data

NAMES = ("digits", *known.TORCHVISION, "gtsrb", "belgium", "orl", "yale")
"""Data sets that --data may call by their names, as `gtsrb:FOLDER`; the first ones also without a folder."""
CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
SMALLEST = 8  # pixels of an image's side
SIZE_SAMPLE = 100  # images whose size is read where neither model nor option gives one


@dataclass(frozen=True)
class DataSet:
    """A data set before its images are read.

    source: its labels.  rows: the images that may be audited, those of its official test set where it has one.
    name: one of NAMES, `imagenet`, or the kind of its files: `folder`, `parquet` or `store`.
    """

    source: Source
    rows: np.ndarray
    name: str

    @property
    def classes(self) -> list[str]:
        """Return the names of the classes; empty where they are not known."""
        return self.source.classes

    @property
    def is_numbered(self) -> bool:
        """Tell whether the classes' names are the numbers of their labels."""
        return self.classes == [str(number) for number in range(len(self.classes))]


def open_data(text: str) -> DataSet:
    """Open the data set that --data names: a path, or one of NAMES, alone or before a colon and a folder.

    Nothing is downloaded. Raises InputError where there is no such data set or it cannot be read.
    """
    name, path = _kind_and_path(text)
    if name == "store":
        return _open_store(Path(str(path)))
    try:
        # Reading labels needs only some of these settings, and an image may have any size.
        source = prepare.read_labels(_data_params(name, path, SMALLEST), download=False)
    except InputError as error:
        raise InputError(_with_option_name(str(error))) from error
    for remark in source.remarks:
        print(f"warning: {one_line(remark)}", file=sys.stderr)
    rows = np.flatnonzero(source.heldout)
    if not len(rows):
        rows = np.arange(len(source.label))
        print(
            f"warning: {text} has no official test images, so all of its {len(rows):,} may be taken; of images that "
            "the model was trained on it knows more than of others",
            file=sys.stderr,
        )
    return DataSet(source, rows, _recognised_name(name, source.classes))


def _recognised_name(name: str, classes: list[str]) -> str:
    """Recognise CIFAR-10 and ImageNet by their class names, and return their names; else return `name`."""
    if [word.lower() for word in classes] == CIFAR10:
        return "cifar10"
    if len(classes) == 1000 and all(re.fullmatch(r"n\d{8}", word) for word in classes):
        return "imagenet"
    return name


def _kind_and_path(text: str) -> tuple[str, str | None]:
    """Split the text of --data into the kind of the data set and its path, None where it has none.

    Raises InputError where there is no such path or name.
    """
    word, colon, rest = text.partition(":")
    if word in NAMES and not (Path(text).exists() and not colon):
        if word not in ("digits", *known.TORCHVISION) and not rest:
            raise InputError(f"--data is {text}; name its folder too, as in {word}:FOLDER")
        return word, rest or None
    path = location(text)
    if not path.exists():
        raise InputError(f"--data is {text}; there is no {path}, and no data set of that name ({', '.join(NAMES)})")
    if path.is_dir() and (path / "cifar-10-batches-py").is_dir():
        return "cifar10", text
    if path.is_dir() and (path / "cifar-100-python").is_dir():
        return "cifar100", text
    if path.is_file():
        if path.suffix != ".parquet":
            raise InputError(f"--data is {text}; name a .parquet file, or a folder with one folder per class")
        return ("store" if store.is_store(path) else "parquet"), text
    files = next(path.rglob("*.parquet"), None)
    return ("folder" if files is None else "parquet"), text


def _data_params(name: str, path: str | None, size: int) -> Data:
    fields = {"source": name, "path": path, "group_pattern": None, "background": "white", "image_size": size}
    return Data.model_construct(**fields)  # type: ignore[arg-type]


def _open_store(path: Path) -> DataSet:
    """Open a store of the pipeline, as data/clean/test.parquet. Raises InputError where it holds attacked images."""
    images = store.read(path)
    if "attack" in images.metadata:
        raise InputError(f"{path} holds attacked images; name clean ones, as in data/clean/test.parquet")
    read_rows = partial(known.in_batches, images.image)
    classes = [str(name) for name in images.metadata["classes"]]
    source = Source(str(path), images.label, np.ones(len(images), bool), classes, None, read_rows)
    name = str(images.metadata.get("source", "store"))
    return DataSet(source, np.arange(len(images)), _recognised_name(name if name in NAMES else "store", classes))


def choose(data: DataSet, classes: int, count: int, seed: int) -> np.ndarray:
    """Draw the rows (N,) of at most `count` images. Every prefix has the classes in their proportions.

    classes: the model's number of classes.  Raises InputError where the data set does not fit it.
    Warns of classes that have no image.
    """
    source = data.source
    if data.classes and len(data.classes) != classes and not (data.is_numbered and len(data.classes) < classes):
        raise InputError(
            f"the model tells {classes} classes apart, {source.name} has {len(data.classes)}; name the data set that "
            "it was trained for, or a folder with one folder for each of its classes"
        )
    label = source.label[data.rows]
    if label.min() < 0 or label.max() >= classes:
        bad_label = label.max() if label.max() >= classes else label.min()
        raise InputError(
            f"{source.name} has the label {bad_label}; the model tells {classes} classes apart, so labels are 0 to "
            f"{classes - 1}"
        )
    absent = np.setdiff1d(np.arange(classes), label)
    if len(absent):
        names = [data.classes[number] if number < len(data.classes) else str(number) for number in absent]
        print(
            f"warning: {source.name} has no images of the class{'es' * (len(names) > 1)} {some(names)}, of which the "
            "audit can say nothing",
            file=sys.stderr,
        )
    return data.rows[draw(data.rows, label, seed)[:count]]


def read(data: DataSet, rows: np.ndarray, size: int) -> store.Images:
    """Read the images of these rows, in their order: (N, S, S, 3) uint8. Raises InputError where one cannot be read."""
    order = np.argsort(rows, kind="stable")
    multi_frame: list[str] = []
    batches = list(decode.decoded(data.source.read(rows[order]), size, "white", multi_frame))
    if multi_frame:
        print(f"warning: several frames or pages, of which the first is taken: {some(multi_frame, 3)}", file=sys.stderr)
    image = np.empty((len(rows), size, size, 3), np.uint8)
    image[order] = np.concatenate(batches)
    return store.Images(rows, data.source.label[rows], image)


def native_size(data: DataSet, rows: np.ndarray) -> int:
    """Return the side in pixels of the images as they are stored. Raises InputError where they differ in size or are
    not square."""
    sample = np.sort(rows)[:SIZE_SAMPLE]
    sample_sizes = [decode.native_size(encoded) for batch in data.source.read(sample) for _, encoded in batch]
    sizes = sorted({size for size in sample_sizes if size is not None})
    if not sizes:
        raise InputError(f"no image of {data.source.name} can be read; look at {data.source.name}")
    if len(sizes) > 1 or sizes[0][0] != sizes[0][1]:
        sizes_text = some([f"{width}×{height}" for width, height in sizes], 3)
        raise InputError(
            f"the images of {data.source.name} have {sizes_text} pixels; say at which size the model reads them, as in "
            "--image-size 224"
        )
    return sizes[0][0]


def _with_option_name(text: str) -> str:
    """Replace the parameters' names in an error of `prepare` by that of the option --data."""
    for before in (f"{PARAMS_FILE}: data.path", "data.path", "data.source"):
        text = text.replace(before, "--data")
    return text
