"""Where the stages keep their files, below the folder that they run in, and how a file is written."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sparring.params.errors import InputError

SOURCE = Path("data/source.json")
CLEAN = Path("data/clean")
ADVERSARIAL = Path("data/adversarial")
UNSEEN = Path("data/unseen")
PREDICTIONS = Path("data/predictions")
WHITEBOX = Path("data/whitebox")
DETECTION = Path("data/detection")
CORRUPTIONS = Path("data/corruptions")
HISTORY = Path("data/history")
TIMINGS = Path("data/timings")
PARTIAL = Path("data/partial")  # of interrupted stages, in the main repository; DVC does not know it
MODELS = Path("models")
PRETRAINED = MODELS / "pretrained.safetensors"
REPORTS = Path("reports")
ABLATION = Path("studies/table3/rows")  # of each row of Table 3, a folder with results of its own
ABLATION_REPORTS = Path("studies/table3/reports")
LEAVE_ONE_OUT = Path("studies/leave_one_out/rows")  # of each attack, what was trained without it
LEAVE_ONE_OUT_REPORTS = Path("studies/leave_one_out/reports")


def model(structure: str, seed: int) -> Path:
    return MODELS / structure / f"{seed}.safetensors"


def detector(structure: str, seed: int) -> Path:
    return MODELS / structure / f"{seed}.detector.safetensors"


@contextmanager
def results_below(folder: Path) -> Iterator[None]:
    """Inside the block, training and evaluation write (and look for) their results below `folder`.

    The images, the stored attacks and the pretrained net stay where they are.
    """
    global MODELS, HISTORY, PREDICTIONS, TIMINGS
    before = MODELS, HISTORY, PREDICTIONS, TIMINGS
    MODELS, HISTORY, PREDICTIONS, TIMINGS = (folder / path for path in before)
    try:
        yield
    finally:
        MODELS, HISTORY, PREDICTIONS, TIMINGS = before


@contextmanager
def images_below(folder: Path) -> Iterator[None]:
    """Inside the block, the stored images are those in `folder`, in place of `data`."""
    global CLEAN, ADVERSARIAL, UNSEEN
    before = CLEAN, ADVERSARIAL, UNSEEN
    CLEAN, ADVERSARIAL, UNSEEN = (folder / path.name for path in before)
    try:
        yield
    finally:
        CLEAN, ADVERSARIAL, UNSEEN = before


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


def root() -> Path:
    """The main repository, also from the copy below .dvc/tmp in which DVC runs queued experiments."""
    here = Path.cwd()
    for folder in here.parents:
        if folder.name == ".dvc" and (folder / "config").exists():
            return folder.parent
    return here
