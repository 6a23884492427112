"""This module defines a source of images before it is split, and the words for official splits."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sparring.layout import main_repository
from sparring.params.errors import InputError
from sparring.params.names import PARAMS_FILE
from sparring.params.sections import Data

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
OFFICIAL = ("train", "validation", "test")  # in the order of the index: training rows come first, test rows last

LeftOut = dict[str, list[str]]
"""The paths below data.path that are not read stand here, by a plural noun that says what they are."""


@dataclass(frozen=True)
class Region:
    """A region is the part of an image file that is the image.

    box: its left, top, right and bottom edge, in pixels from 0; column `right` and row `bottom` are the first outside.
    """

    file: Path
    box: tuple[int, int, int, int]


Encoded = bytes | Path | Region | np.ndarray | None
"""An image of a source is encoded bytes, a file, a part of a file, or pixels (H, W[, 3]) uint8. None is no image."""


@dataclass(frozen=True)
class Source:
    """A source is a data set of N images before it is split. Rows are counted over all of it, training rows first.

    label: (N,) int64, each the position of a name in `classes`.  heldout: (N,) bool, true for official test images.
    path: N paths, or None where images have none (or nobody needs them).
    read: a function of M ascending rows that yields their images in batches, each with its name for an error.
    remarks: warnings for the user, one line each.
    group: N names, the same for images that show one thing and so belong into one split; None where the source has no
    groups. Those of official test images have no meaning.
    """

    name: str
    label: np.ndarray
    heldout: np.ndarray
    classes: list[str]
    path: Sequence[str | None] | None
    read: Callable[[np.ndarray], Iterator[list[tuple[str, Encoded]]]]
    remarks: list[str] = field(default_factory=list)
    group: Sequence[str] | None = None


def location(path: str) -> Path:
    """Return `data.path` as a path below the main repository, unless it is absolute; `~` is the home folder."""
    try:
        return main_repository() / Path(path).expanduser()
    except RuntimeError as error:
        raise InputError(f"{PARAMS_FILE}: data.path is {path}; there is no such home folder") from error


def existing_path(data: Data) -> Path:
    """Return `data.path` as `location` does. Raises InputError where it does not exist."""
    path = location(str(data.path))
    if not path.exists():
        raise InputError(f"{PARAMS_FILE}: data.path is {data.path}; there is no {path}")
    return path


def heldout_rows(kind: np.ndarray) -> np.ndarray:
    """Tell which rows are held out, (N,) bool: the test set, or the validation set where there is no test set.

    kind: (N,) of the words in OFFICIAL.
    """
    return np.asarray(kind == ("test" if "test" in kind else "validation"), bool)


def some(names: Sequence[object], most: int = 5) -> str:
    """List the first `most` names on one line, and say how many more there are."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return f"{', '.join(str(name) for name in names[:most])}{more}"


def describe(left_out: LeftOut) -> str:
    """Describe what is left out, on one line: for each noun, the number of paths and the first three."""
    return ", ".join(f"{len(paths):,} {noun} ({some(paths, 3)})" for noun, paths in left_out.items() if paths)


def files_of(images: Sequence[Path | Region], rows: np.ndarray) -> Iterator[list[tuple[str, Encoded]]]:
    """Yield these rows of the images, each named by its file, in batches: a source's `read` once `images` is set."""
    for start in range(0, len(rows), BATCH):
        batch = [images[row] for row in rows[start : start + BATCH]]
        yield [(str(image.file if isinstance(image, Region) else image), image) for image in batch]
