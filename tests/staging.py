"""This runs stages in the tests' process, as `python stages/<name>.py …` does, but without the seconds of a start."""

import io
import runpy
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

STAGES = Path(__file__).resolve().parent.parent / "stages"


def stage(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a stage's script in the current folder and return its status and output."""
    command, status = [str(STAGES / f"{name}.py"), *arguments], 0
    with (
        redirect_stdout(io.StringIO()) as out,
        redirect_stderr(io.StringIO()) as error,
        pytest.MonkeyPatch.context() as patched,
    ):
        patched.setattr(sys, "argv", command)
        patched.syspath_prepend(STAGES)
        try:
            runpy.run_path(command[0], run_name="__main__")
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return subprocess.CompletedProcess(command, status, out.getvalue(), error.getvalue())
