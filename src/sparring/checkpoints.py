"""Survive a kill: what a stage has finished is kept where DVC removes nothing, and a rerun goes on to the same bits."""

import ast
import hashlib
import json
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from sparring.device import hardware
from sparring.layout import PARTIAL, main_repository, replacing

PACKAGE = "sparring"
CODE = Path(__file__).parent
SHARE = 0.02  # of the time may go into saving
ABANDONED = 14 * 86400  # seconds without a change, after which nobody is taken to go on from an unfinished run


def folder(
    name: str, settings: object, inputs: Iterable[Path], module: str, device: torch.device, dtype: torch.dtype
) -> Path:
    """Where a run keeps what it has finished, below PARTIAL of the main repository.

    Its name ends in a digest of what decides the run's results, so that no other run ever takes it: settings (plain
    values and sections of params.yaml), the content of the input files, type of device and precision, torch's version,
    and the code of the stage's module (as `sparring.evaluation.whitebox`) with all that it imports. The processor and
    its number of threads have no part in it, so results agree to rounding only where another machine goes on. A run
    whose bytes must not depend on that has `machine` among its settings.
    Folders of runs that were abandoned are removed.
    """
    unfinished = main_repository() / PARTIAL
    _remove_abandoned(unfinished)
    facts = [settings, device.type, str(dtype), torch.__version__]
    text = json.dumps(facts, sort_keys=True, default=lambda section: section.model_dump())
    digest = hashlib.sha256(text.encode())
    for path in [*inputs, *code(module)]:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return unfinished / f"{name}-{digest.hexdigest()[:16]}"


def machine(device: torch.device) -> str:
    """What two runs have to share for the same bytes: processor, or GPU, and number of threads."""
    return f"{device}, {hardware(device)}"


def code(module: str) -> list[Path]:
    """The files of a module of this package and of all modules of it that it imports, directly or not, sorted."""
    reached: set[Path] = set()
    waiting = [module]
    while waiting:
        path = CODE.joinpath(*waiting.pop().split(".")[1:])
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if path in reached or not path.exists():  # or it is a name within a module
            continue
        reached.add(path)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE:
                waiting += [f"{node.module}.{name.name}" for name in node.names]
                waiting += [str(node.module)] if node.module != PACKAGE else []
    return sorted(reached)


def _remove_abandoned(unfinished: Path) -> None:
    now = time.time()
    for run in sorted(unfinished.glob("*/")):
        try:
            last = max(path.stat().st_mtime for path in [run, *run.rglob("*")])
        except FileNotFoundError:  # another process has just finished it
            continue
        if now - last > ABANDONED:
            shutil.rmtree(run, ignore_errors=True)


class Checkpoint:
    """The state of one training in one file. Without a path nothing is kept.

    earlier: seconds that the runs before this one had spent on what they saved.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.earlier = 0.0
        self._start = self._due = time.monotonic()

    def load(self) -> dict[str, Any] | None:
        """The state as saved, its tensors on the CPU; None where there is none."""
        if self.path is None or not self.path.exists():
            return None
        try:
            state: dict[str, Any] = torch.load(self.path, map_location="cpu", weights_only=True)
        except Exception as error:  # whatever a file raises that a power failure cut short
            print(f"{self.path} cannot be read ({type(error).__name__}); starting from the beginning", flush=True)
            return None
        self.earlier = state["seconds"]
        return state

    def due(self) -> bool:
        """Whether enough time has passed since the last saving for another to stay within SHARE."""
        return self.path is not None and time.monotonic() >= self._due

    def save(self, state: dict[str, Any]) -> None:
        """Replace the file. state: numbers, strings, lists, dictionaries and tensors."""
        if self.path is None:
            return
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()  # work that is still queued is no cost of saving
        began = time.monotonic()
        with replacing(self.path) as temporary, temporary.open("wb") as file:
            torch.save(state | {"seconds": self.earlier + began - self._start}, file)
        ended = time.monotonic()
        self._due = ended + (ended - began) / SHARE

    def delete(self) -> None:
        if self.path is not None and self.path.exists():
            self.path.unlink()
            if not any(self.path.parent.iterdir()):
                self.path.parent.rmdir()

    @contextmanager
    def stoppable(self) -> Iterator[Callable[[], bool]]:
        """In the block, the first SIGTERM or Ctrl-C only makes the yielded function true, so that the state can be
        saved; the next acts as ever, as does the first where nothing is kept."""
        found: list[int] = []
        handlers = {number: signal.getsignal(number) or signal.SIG_DFL for number in (signal.SIGTERM, signal.SIGINT)}

        def restore() -> None:
            for number, handler in handlers.items():
                signal.signal(number, handler)

        def note(number: int, frame: FrameType | None) -> None:
            found.append(number)
            restore()

        if self.path is None or threading.current_thread() is not threading.main_thread():
            yield lambda: False  # only the main thread may handle signals
            return
        try:
            for number in handlers:
                signal.signal(number, note)
            yield lambda: bool(found)
        finally:
            restore()


def random_state(device: torch.device) -> list[torch.Tensor]:
    """The state of torch's global generators that work on the device draws from."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def set_random_state(state: list[torch.Tensor], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state[1], device)
