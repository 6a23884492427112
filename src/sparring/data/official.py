"""This module finds the folders of a data set as its authors publish it, by their names, anywhere below data.path."""

import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from sparring.data.sources import LeftOut, describe, existing_path
from sparring.params.errors import InputError
from sparring.params.names import PARAMS_FILE
from sparring.params.sections import Data

# Files of operating systems, and the authors' own notes, which are not worth a warning.
UNREMARKED = ("thumbs.db", "desktop.ini", "readme")


@dataclass(frozen=True)
class Tree:
    """A tree holds the folders from data.path down, without hidden ones and those that start with `__`.

    layout: how the data set should be laid out, for errors.  files: the sorted names of the files in each folder,
    without hidden ones.  left_out: what is not read, for a warning.
    """

    top: Path
    layout: str
    files: dict[Path, list[str]]
    left_out: LeftOut = field(default_factory=lambda: defaultdict(list))

    @staticmethod
    def of(data: Data, layout: str) -> "Tree":
        """Walk data.path. Raises InputError where it names nothing, or a file."""
        top = existing_path(data)
        if not top.is_dir():
            raise InputError(f"{PARAMS_FILE}: data.path is {top}, a file; source {data.source} needs {layout}")
        return Tree(top, layout, {folder: sorted(names) for folder, names in _walk(top)})

    def ending(self, *names: str) -> list[Path]:
        """Return the folders whose paths, in lower case, end with these names."""
        return [folder for folder in self.files if _lower_parts(folder)[-len(names) :] == names]

    def within(self, folder: Path) -> list[Path]:
        """Return the folders directly in this one."""
        return [inner for inner in self.files if inner.parent == folder]

    def only(self, paths: list[Path], noun: str) -> Path:
        """Return the only one of the paths. Raises InputError, which calls it by the noun, for none and for several."""
        if not paths:
            raise InputError(f"{PARAMS_FILE}: data.path is {self.top}, which has no {noun}; it needs {self.layout}")
        if len(paths) > 1:
            raise InputError(
                f"{self.top} has more than one {noun} ({paths[0]}, {paths[1]}); leave one of them there, or name in "
                f"data.path a folder that has only one"
            )
        return paths[0]

    def leave_out(self, noun: str, *paths: Path) -> None:
        """Note, for a warning, that paths are not read.  noun: what they are, in the plural."""
        if paths:
            self.left_out[noun] += [path.relative_to(self.top).as_posix() for path in paths]

    def leave_out_others(self, folder: Path, names: list[str]) -> None:
        """Note, for a warning, these files of a folder as no images of the data set, but for a readme and the like."""
        others = [folder / name for name in names if not name.lower().startswith(UNREMARKED)]
        self.leave_out("files that are none of its images", *others)

    def remarks(self) -> list[str]:
        """Return the warnings for the user."""
        return [f"{self.top}: left out {describe(self.left_out)}"] if any(self.left_out.values()) else []


def is_image(name: str) -> bool:
    """Tell whether a file's name has the suffix of an image format that Pillow reads."""
    return Path(name).suffix.lower() in Image.registered_extensions()


def _walk(top: Path) -> Iterator[tuple[Path, list[str]]]:
    visited = set()
    for folder, inner, names in os.walk(top, onerror=_fail, followlinks=True):
        real = os.path.realpath(folder)
        if real in visited:  # by a link, perhaps to a folder above
            inner.clear()
            continue
        visited.add(real)
        inner[:] = sorted(name for name in inner if not name.startswith((".", "__")))
        yield Path(folder), [name for name in names if not name.startswith(".")]


def _fail(error: OSError) -> None:
    raise error  # os.walk would go on without the folder


def _lower_parts(path: Path) -> tuple[str, ...]:
    return tuple(part.lower() for part in path.parts)
