"""This module shows the progress of a long run, and prints and writes its time at the end."""

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
    """This function, which `bar` yields, moves the bar on by the items done since its last call."""

    def __call__(self, done: int, note: str = "") -> None: ...


class Done(Protocol):
    """This function, which `timed` yields, ends the timing of a stage."""

    def __call__(self, images: int, summary: str, earlier: float = 0.0) -> None: ...


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f}/s" if task.speed else "")


@contextmanager
def bar(title: str, total: int, visible: bool = True) -> Iterator[Advance]:
    """Show a bar with rate and remaining time on standard error; nothing where that is no terminal, or not `visible`.

    Yields a function. Its arguments are the number of items done since its last call and a note beside the title.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    console = Console(file=sys.stderr)
    with Progress(*columns, console=console, disable=not (visible and console.is_terminal), transient=True) as progress:
        task = progress.add_task(title, total=total)

        def advance(done: int, note: str = "") -> None:
            progress.update(task, advance=done, description=f"{title}, {note}" if note else None)

        yield advance


@contextmanager
def timed(
    layout: Layout, stage: str, on: torch.device, precision: torch.dtype = torch.float32, processes: int = 1
) -> Iterator[Done]:
    """Time a stage. Yields a function to call once, at the end, which prints the stage's one line and writes
    data/timings/<stage>.json (`@` becomes `-`) for the report. Its arguments are the number of images, a summary of
    the work, and the seconds that earlier, interrupted runs spent on it.
    """
    start = time.perf_counter()

    def done(images: int, summary: str, earlier: float = 0.0) -> None:
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
        speed = f" in {seconds:.1f} s ({rate:,.0f} images/s)" if images else ""
        print(f"{stage}: {summary}{speed}", flush=True)

    yield done
