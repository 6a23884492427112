"""What a source of images is before it is split, and the words by which sources tell their official splits."""

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
OFFICIAL = ("train", "validation", "test")  # the order of the index: training rows come first, test rows last

LeftOut = dict[str, list[str]]
"""What is not read, below data.path: paths by what they are, in the plural."""


@dataclass(frozen=True)
class Region:
    """The part of an image file that is the image.  box: its left, top, right and bottom edge, in pixels from 0; the
    column `right` and the row `bottom` are the first outside."""

    file: Path
    box: tuple[int, int, int, int]


Encoded = bytes | Path | Region | np.ndarray | None
"""An image as the source has it: encoded, or its file, or a part of that, or pixels (H, W[, 3]) uint8; None where there
is none."""


@dataclass(frozen=True)
class Source:
    """A data set of N images before it is split; rows are counted over all of it, official training rows first.

    label: (N,) int64, each the position of a name in `classes`.  heldout: (N,) bool, the official test images.
    path: N paths, or None where images have none (or nobody needs them).
    read: from M ascending rows to consecutive batches of images, each with its name for an error, M in all.
    remarks: warnings for the user, one line each.
    group: N names, the same for images that show one thing and so belong into one split; None where the source knows
    of none. Those of official test images have no meaning.
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
    """`data.path` as a path: below the main repository unless absolute; `~` is the home folder."""
    try:
        return main_repository() / Path(path).expanduser()
    except RuntimeError as error:
        raise InputError(f"{PARAMS_FILE}: data.path is {path}; there is no such home folder") from error


def existing(data: Data) -> Path:
    path = location(str(data.path))
    if not path.exists():
        raise InputError(f"{PARAMS_FILE}: data.path is {data.path}; there is no {path}")
    return path


def heldout(kind: np.ndarray) -> np.ndarray:
    """(N,) bool, which rows are held out: the test set, or the validation set where that is all there is.

    kind: (N,) of the words in OFFICIAL.
    """
    return np.asarray(kind == ("test" if "test" in kind else "validation"), bool)


def some(names: Sequence[object], most: int = 5) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return f"{', '.join(str(name) for name in names[:most])}{more}"


def told(left_out: LeftOut) -> str:
    """What is left out, on one line: by what it is, the number and the first three."""
    return ", ".join(f"{len(paths):,} {what} ({some(paths, 3)})" for what, paths in left_out.items() if paths)


def files_of(images: Sequence[Path | Region], rows: np.ndarray) -> Iterator[list[tuple[str, Encoded]]]:
    """Those rows of the N images, each named by its file, in batches: a source's `read`, but for the first argument."""
    for start in range(0, len(rows), BATCH):
        chosen = [images[row] for row in rows[start : start + BATCH]]
        yield [(str(image.file if isinstance(image, Region) else image), image) for image in chosen]
