"""A data set laid out as its authors publish it: its folders are found by their names, wherever below data.path."""

import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from sparring.data.sources import LeftOut, existing, told
from sparring.params.errors import InputError
from sparring.params.names import PARAMS_FILE
from sparring.params.sections import Data

# What operating systems leave in folders, and the authors' own notes: not worth a warning.
UNTOLD = ("thumbs.db", "desktop.ini", "readme")


@dataclass(frozen=True)
class Tree:
    """The folders from data.path down, but for hidden ones and those that start with `__`.

    layout: what the data set should look like, for errors.  files: the names of the files in each folder, sorted,
    without hidden ones.  left_out: what is not read, for a warning.
    """

    top: Path
    layout: str
    files: dict[Path, list[str]]
    left_out: LeftOut = field(default_factory=lambda: defaultdict(list))

    @staticmethod
    def of(data: Data, layout: str) -> "Tree":
        """Raises InputError where data.path names nothing, or a file."""
        top = existing(data)
        if not top.is_dir():
            raise InputError(f"{PARAMS_FILE}: data.path is {top}, a file; source {data.source} needs {layout}")
        return Tree(top, layout, {folder: sorted(names) for folder, names in _walk(top)})

    def ending(self, *names: str) -> list[Path]:
        """The folders whose paths end with these names, in lower case."""
        return [folder for folder in self.files if _lower(folder)[-len(names) :] == names]

    def within(self, folder: Path) -> list[Path]:
        return [each for each in self.files if each.parent == folder]

    def only(self, found: list[Path], what: str) -> Path:
        """The one that is found.  Raises InputError, with what it is, for none and for several."""
        if not found:
            raise InputError(f"{PARAMS_FILE}: data.path is {self.top}, which has no {what}; it needs {self.layout}")
        if len(found) > 1:
            raise InputError(
                f"{self.top} has more than one {what} ({found[0]}, {found[1]}); leave one of them there, or name in "
                f"data.path a folder that has only one"
            )
        return found[0]

    def leave_out(self, what: str, *paths: Path) -> None:
        """Notes for a warning that paths are not read; what: what they are, in the plural."""
        if paths:
            self.left_out[what] += [path.relative_to(self.top).as_posix() for path in paths]

    def leave_out_others(self, folder: Path, names: list[str]) -> None:
        """The same of files that are no images of the data set."""
        self.leave_out("files that are none of its images", *(folder / name for name in names if not _untold(name)))

    def remarks(self) -> list[str]:
        return [f"{self.top}: left out {told(self.left_out)}"] if any(self.left_out.values()) else []


def is_image(name: str) -> bool:
    return Path(name).suffix.lower() in Image.registered_extensions()


def _walk(top: Path) -> Iterator[tuple[Path, list[str]]]:
    visited = set()
    for folder, below, names in os.walk(top, onerror=_fail, followlinks=True):
        real = os.path.realpath(folder)
        if real in visited:  # by a link, perhaps to a folder above
            below.clear()
            continue
        visited.add(real)
        below[:] = sorted(name for name in below if not name.startswith((".", "__")))
        yield Path(folder), [name for name in names if not name.startswith(".")]


def _fail(error: OSError) -> None:
    raise error  # os.walk would go on without the folder


def _lower(path: Path) -> tuple[str, ...]:
    return tuple(part.lower() for part in path.parts)


def _untold(name: str) -> bool:
    return name.lower().startswith(UNTOLD)
