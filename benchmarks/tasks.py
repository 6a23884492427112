"""Runs tasks in forked processes, several at a time, until a deadline. A finished task is never run again."""

import json
import multiprocessing
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing.context import ForkProcess
from pathlib import Path

from sparring.layout import replacing
from sparring.params.errors import InputError

GRACE = 8.0  # seconds that a task has to save its state once it is told to stop

Task = Callable[[], None]


class Tasks:
    """Runs tasks. Each writes to `<name>.log` and, where it succeeds, `<name>.json`: when it began and ended,
    in seconds since 1970.

    records: the folder for both.  work: the folder that tasks run in.  end: when the time is over (time.monotonic).
    reasons: by part, why it is not finished.
    """

    def __init__(self, records: Path, work: Path, end: float) -> None:
        self.records, self.work, self.end = records, work, end
        self.reasons: dict[str, str] = {}

    @property
    def seconds_left(self) -> float:
        return self.end - time.monotonic()

    def finished(self, task: str) -> bool:
        return (self.records / f"{task}.json").exists()

    def do(self, part: str, tasks: dict[str, Task], deadline: float, at_once: int) -> bool:
        """Run the unfinished tasks of a part until the deadline. Return whether all are finished then."""
        waiting = [name for name in tasks if not self.finished(name)]
        running: dict[str, ForkProcess] = {}
        while (waiting or running) and time.monotonic() < deadline:
            while waiting and len(running) < at_once:
                name = waiting.pop(0)
                running[name] = multiprocessing.get_context("fork").Process(target=self._run, args=(name, tasks[name]))
                running[name].start()
            for name in [name for name, process in running.items() if not process.is_alive()]:
                running.pop(name).join()
                self._report(part, name)
            time.sleep(0.02)
        _stop(list(running.values()))
        for name in [*running, *waiting]:
            self._report(part, name)
        return all(self.finished(name) for name in tasks)

    def _run(self, name: str, task: Task) -> None:
        """Run a task in the forked process."""
        began, parent = time.time(), os.getppid()
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
        log = os.open(self.records / f"{name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for stream in (1, 2):
            os.dup2(log, stream)
        sys.stdout, sys.stderr = (os.fdopen(stream, "w", 1) for stream in (1, 2))
        os.chdir(self.work)
        try:
            task()
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            os._exit(1)
        except SystemExit as stopped:  # its state is saved
            print(stopped, file=sys.stderr)
            os._exit(1)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        with replacing(self.records / f"{name}.json") as path:
            path.write_text(json.dumps({"began": began, "ended": time.time()}) + "\n")
        os._exit(0)  # without running the parent's exit handlers

    def _report(self, part: str, name: str) -> None:
        if self.finished(name):
            times = json.loads((self.records / f"{name}.json").read_text())
            print(f"{name}: {times['ended'] - times['began']:.1f} s; {self.seconds_left:.0f} s are left", flush=True)
            return
        log = self.records / f"{name}.log"
        lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
        failed = lines[-1] if lines and lines[-1].startswith("error: ") else "there was no time for it"
        self.reasons[part] = f"{name}: {failed.removeprefix('error: ')}"
        print(f"{self.reasons[part]} ({log})", flush=True)


def _end_with(parent: int) -> None:
    """End this process when its parent has been killed, or it would interfere with a resumed run."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _stop(running: list[ForkProcess]) -> None:
    for process in running:
        process.terminate()
    until = time.monotonic() + GRACE
    for process in running:
        process.join(max(0.0, until - time.monotonic()))
        process.kill()
        process.join()
