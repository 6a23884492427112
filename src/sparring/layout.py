"""Where the stages keep their files, and how a file is written."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from sparring.params import Params
from sparring.params.errors import InputError

PARTIAL = Path("data/partial")  # of interrupted stages, in the main repository; DVC does not know it


@dataclass(frozen=True)
class Layout:
    """Where the stages keep their files.

    root: the folder that all the files are below.
    images: the folder of the clean and attacked images, below root.
    results: the folder below root that has what trainings and evaluations leave; a row of a study has one of its own.
    nets: the folder of the pretrained net, below root.
    """

    root: Path = Path()
    images: Path = Path("data")
    results: Path = Path()
    nets: Path = Path("models")

    @property
    def source(self) -> Path:
        """What the stage `watch` writes."""
        return self.root / "data/source.json"

    @property
    def clean(self) -> Path:
        return self.root / self.images / "clean"

    @property
    def adversarial(self) -> Path:
        return self.root / self.images / "adversarial"

    @property
    def unseen(self) -> Path:
        """The images of attacks that nobody trains on, in a folder that training does not depend on."""
        return self.root / self.images / "unseen"

    def attacked(self, params: Params, attack: str) -> Path:
        """The folder of an attack's images."""
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
        """The training curve of a structure, or of `pretrained`."""
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
        """The same, but for the results, which are those of a row of a study: studies/<study>/rows/<name>."""
        return replace(self, results=Path("studies", study, "rows", name))

    def study_reports(self, study: str) -> Path:
        return self.root / "studies" / study / "reports"


HERE = Layout()  # in the folder that a stage runs in


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends well and is removed when it does not.

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
    """The main repository, also from the copy below .dvc/tmp in which DVC runs queued experiments."""
    here = Path.cwd()
    for folder in here.parents:
        if folder.name == ".dvc" and (folder / "config").exists():
            return folder.parent
    return here
