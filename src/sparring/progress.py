"""What a long run shows while it runs, and the one line and the timing file that it leaves."""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from sparring import device
from sparring.layout import Layout, replacing


class Advance(Protocol):
    def __call__(self, done: int, note: str = "") -> None: ...


class Done(Protocol):
    def __call__(self, images: int, what: str, earlier: float = 0.0) -> None: ...


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f}/s" if task.speed else "")


@contextmanager
def bar(what: str, total: int, shown: bool = True) -> Iterator[Advance]:
    """A bar with rate and remaining time on standard error; silent where that is not a terminal, or not `shown`.

    Yields a function to call with the number of items done since the last call, and what to note beside the name.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    console = Console(file=sys.stderr)
    with Progress(*columns, console=console, disable=not (shown and console.is_terminal), transient=True) as progress:
        task = progress.add_task(what, total=total)

        def advance(done: int, note: str = "") -> None:
            progress.update(task, advance=done, description=f"{what}, {note}" if note else None)

        yield advance


@contextmanager
def timed(
    layout: Layout, stage: str, on: torch.device, precision: torch.dtype = torch.float32, processes: int = 1
) -> Iterator[Done]:
    """Time a stage. Yields a function to call once, at the end, with the number of images handled, what was done, and
    the seconds that interrupted runs had spent on it before; it prints the stage's one line and writes
    data/timings/<stage>.json (`@` becomes `-`), which only the report reads.
    """
    start = time.perf_counter()

    def done(images: int, what: str, earlier: float = 0.0) -> None:
        seconds = time.perf_counter() - start + earlier
        rate = images / seconds
        facts = {
            "stage": stage,
            "seconds": round(seconds, 2),
            "images": images,
            "images_per_second": round(rate, 1),
            "hardware": (f"{processes} processes, each on " if processes > 1 else "") + device.hardware(on),
            "device": str(on),
            "precision": str(precision).removeprefix("torch."),
            "torch": torch.__version__,
        }
        with replacing(layout.timings / f"{stage.replace('@', '-')}.json") as path:
            path.write_text(json.dumps(facts, indent=2, sort_keys=True) + "\n")
        print(f"{stage}: {what} in {seconds:.1f} s ({rate:,.0f} images/s)", flush=True)

    yield done
