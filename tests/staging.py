"""Stages run in this process: as `python stages/<name>.py …` would run them, but for the seconds that a start takes."""

import io
import runpy
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

STAGES = Path(__file__).resolve().parent.parent / "stages"


def stage(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """What the script came to in the current folder."""
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
