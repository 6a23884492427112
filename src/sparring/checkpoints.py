"""Checkpoints let an interrupted stage resume and end with the same bits. They lie where DVC removes nothing."""

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
SHARE = 0.02  # the share of a run's time that may go into saving
ABANDONED = 14 * 86400  # seconds without a change, after which an unfinished run counts as abandoned


def folder(
    name: str, settings: object, inputs: Iterable[Path], module: str, device: torch.device, dtype: torch.dtype
) -> Path:
    """Return the folder of a run's checkpoints, below PARTIAL of the main repository. Remove those of abandoned runs.

    The folder's name ends in a digest of what decides the run's results, so that no other run ever reads it. The digest
    covers the settings (plain values and sections of params.yaml), the content of the input files, the type of device,
    the precision, torch's version, and the code of the stage's module (such as `sparring.evaluation.whitebox`) with all
    that it imports. It does not cover the processor and its number of threads: a run that resumes on another machine
    agrees to rounding only. A run whose bytes must not depend on that has `machine` among its settings.
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
    """Describe the processor, or GPU, and the number of threads, which two runs must share to write the same bytes."""
    return f"{device}, {hardware(device)}"


def code(module: str) -> list[Path]:
    """Return the sorted files of a module of this package and of all its modules that it imports, directly or not."""
    reached: set[Path] = set()
    names_to_read = [module]
    while names_to_read:
        path = CODE.joinpath(*names_to_read.pop().split(".")[1:])
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if path in reached or not path.exists():  # It does not exist where the name is one within a module.
            continue
        reached.add(path)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE:
                names_to_read += [f"{node.module}.{name.name}" for name in node.names]
                names_to_read += [str(node.module)] if node.module != PACKAGE else []
    return sorted(reached)


def _remove_abandoned(unfinished: Path) -> None:
    now = time.time()
    for run in sorted(unfinished.glob("*/")):
        try:
            last_change = max(path.stat().st_mtime for path in [run, *run.rglob("*")])
        except FileNotFoundError:  # another process has just finished it
            continue
        if now - last_change > ABANDONED:
            shutil.rmtree(run, ignore_errors=True)


class Checkpoint:
    """A checkpoint holds the state of one training in one file. Without a path it saves nothing.

    earlier: the seconds that earlier runs took to reach the state that `load` returned.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.earlier = 0.0
        self._start = self._due = time.monotonic()

    def load(self) -> dict[str, Any] | None:
        """Return the saved state, its tensors on the CPU; None where there is no file, or no readable one."""
        if self.path is None or not self.path.exists():
            return None
        try:
            state: dict[str, Any] = torch.load(self.path, map_location="cpu", weights_only=True)
        except Exception as error:  # A power failure may have cut the file short, and torch then raises anything.
            print(f"{self.path} cannot be read ({type(error).__name__}); starting from the beginning", flush=True)
            return None
        self.earlier = state["seconds"]
        return state

    def due(self) -> bool:
        """Tell whether it is time to save: at these intervals saving takes at most SHARE of the run's time."""
        return self.path is not None and time.monotonic() >= self._due

    def save(self, state: dict[str, Any]) -> None:
        """Replace the file. The state consists of numbers, strings, lists, dictionaries and tensors."""
        if self.path is None:
            return
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()  # so that work still queued does not count as time of saving
        began = time.monotonic()
        with replacing(self.path) as temporary, temporary.open("wb") as file:
            torch.save(state | {"seconds": self.earlier + began - self._start}, file)
        ended = time.monotonic()
        self._due = ended + (ended - began) / SHARE

    def delete(self) -> None:
        """Remove the file, and its folder where that is then empty."""
        if self.path is not None and self.path.exists():
            self.path.unlink()
            if not any(self.path.parent.iterdir()):
                self.path.parent.rmdir()

    @contextmanager
    def stoppable(self) -> Iterator[Callable[[], bool]]:
        """Yield a function that tells whether SIGTERM or Ctrl-C has arrived, so that the caller can save its state.

        Inside the block the first such signal has no other effect. The second has its usual effect, and so has the
        first where the checkpoint has no path.
        """
        signals: list[int] = []
        handlers = {number: signal.getsignal(number) or signal.SIG_DFL for number in (signal.SIGTERM, signal.SIGINT)}

        def restore() -> None:
            for number, handler in handlers.items():
                signal.signal(number, handler)

        def note_signal(number: int, frame: FrameType | None) -> None:
            signals.append(number)
            restore()

        if self.path is None or threading.current_thread() is not threading.main_thread():
            yield lambda: False  # only the main thread may handle signals
            return
        try:
            for number in handlers:
                signal.signal(number, note_signal)
            yield lambda: bool(signals)
        finally:
            restore()


def random_state(device: torch.device) -> list[torch.Tensor]:
    """Return the state of torch's global generators: the CPU's, and that of the device if it is a GPU."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def set_random_state(state: list[torch.Tensor], device: torch.device) -> None:
    """Set torch's global generators to a state that `random_state` returned."""
    torch.set_rng_state(state[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state[1], device)
