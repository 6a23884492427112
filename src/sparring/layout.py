"""This module says where the stages keep their files, and replaces a file whole or not at all."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from sparring.params import Params
from sparring.params.errors import InputError

PARTIAL = Path("data/partial")  # the work of interrupted stages, in the main repository; DVC does not track it


@dataclass(frozen=True)
class Layout:
    """A layout says where the stages keep their files. Its members return the folder, or file, of what they name.

    root: the folder above all the files.
    images: the folder of the clean and attacked images, below root.
    results: the folder of the results of trainings and evaluations, below root; each row of a study has its own.
    nets: the folder of the pretrained net, below root.
    """

    root: Path = Path()
    images: Path = Path("data")
    results: Path = Path()
    nets: Path = Path("models")

    @property
    def source(self) -> Path:
        """Return the file that the stage `watch` writes."""
        return self.root / "data/source.json"

    @property
    def clean(self) -> Path:
        return self.root / self.images / "clean"

    @property
    def adversarial(self) -> Path:
        return self.root / self.images / "adversarial"

    @property
    def unseen(self) -> Path:
        """Return the folder of the attacks that no structure trains on. No stage of training depends on it."""
        return self.root / self.images / "unseen"

    def attacked(self, params: Params, attack: str) -> Path:
        """Return the folder of an attack's images."""
        return (self.adversarial if attack in params.attacks else self.unseen) / attack

    @property
    def pretrained(self) -> Path:
        return self.root / self.nets / "pretrained.safetensors"

    def models(self, structure: str) -> Path:
        return self.root / self.results / "models" / structure

    def model(self, structure: str, seed: int) -> Path:
        return self.models(structure) / f"{seed}.safetensors"

    def detector(self, structure: str, seed: int) -> Path:
        return self.models(structure) / f"{seed}.detector.safetensors"

    def history(self, net: str) -> Path:
        """Return the file of the training curve of a structure, or of `pretrained`."""
        return self.root / self.results / "data/history" / f"{net}.csv"

    def predictions(self, structure: str) -> Path:
        return self.root / self.results / "data/predictions" / f"{structure}.parquet"

    def whitebox(self, structure: str) -> Path:
        return self.root / self.results / "data/whitebox" / f"{structure}.parquet"

    def corruptions(self, structure: str) -> Path:
        return self.root / self.results / "data/corruptions" / f"{structure}.parquet"

    def detection(self, structure: str) -> Path:
        return self.root / self.results / "data/detection" / f"{structure}.parquet"

    def certified(self, structure: str) -> Path:
        return self.root / self.results / "data/certified" / f"{structure}.parquet"

    @property
    def timings(self) -> Path:
        return self.root / self.results / "data/timings"

    @property
    def reports(self) -> Path:
        return self.root / "reports"

    def row(self, study: str, name: str) -> "Layout":
        """Return this layout with the results of a row of a study: studies/<study>/rows/<name>."""
        return replace(self, results=Path("studies", study, "rows", name))

    def study_reports(self, study: str) -> Path:
        return self.root / "studies" / study / "reports"


HERE = Layout()  # the layout in the current folder, in which a stage runs


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`. It replaces `path` when the block ends well, and is removed otherwise.

    Raises InputError where the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise InputError(f"{path}: the disk is full; free some space and run the stage again") from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def main_repository() -> Path:
    """Return the main repository, also from the copy below .dvc/tmp in which DVC runs a queued experiment."""
    current = Path.cwd()
    for folder in current.parents:
        if folder.name == ".dvc" and (folder / "config").exists():
            return folder.parent
    return current
