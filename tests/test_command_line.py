"""The command line: its help, its console script, completion in shells."""

import os
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import pytest
import typer
from typer.testing import CliRunner

from sparring import __main__ as command_line

ROOT = Path(__file__).resolve().parents[1]
GROUP = typer.main.get_command(command_line.app)
COMMANDS = list(GROUP.list_commands(click.Context(GROUP)))  # type: ignore[attr-defined]
SCREEN = 45  # lines


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help_fits_a_screen_and_ends_with_an_example(name: str) -> None:
    arguments = [name, "--help"] if name else ["--help"]
    shown = CliRunner().invoke(command_line.app, arguments, env={"COLUMNS": "80", "TERMINAL_WIDTH": "80"})
    lines = [line.rstrip() for line in shown.stdout.rstrip().splitlines()]
    assert shown.exit_code == 0 and len(lines) <= SCREEN
    example = " ".join(" ".join(lines).rpartition("For example")[2].split())
    words = shlex.split(example.partition(": ")[2])
    assert words[0] == "sparring" and (not name or words[1] == name)
    GROUP.commands[words[1]].make_context(words[1], words[2:])  # type: ignore[attr-defined]


def console_script(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """What the script that pip makes of pyproject.toml's entry does."""
    entry = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]["sparring"]
    module, function = entry.split(":")
    code = f"import sys; sys.argv[0] = '/usr/bin/sparring'; from {module} import {function}; {function}()"
    call = [sys.executable, "-c", code, *arguments]
    return subprocess.run(call, env=os.environ | environment, capture_output=True, text=True, check=False)


def test_the_console_script_does_the_same() -> None:
    done = console_script("check", "--help")
    assert done.returncode == 0 and "Usage: sparring check" in done.stdout
    done = console_script("profile", "nothing")
    assert done.returncode == 1 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


@pytest.mark.parametrize(("typed", "completed"), [("aud", "audit"), ("audit --fail", "--fail-under")])
def test_shells_complete_commands_and_options(typed: str, completed: str) -> None:
    words = f"sparring {typed}"
    place = str(len(words.split()) - 1)
    done = console_script(_SPARRING_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=place)
    assert done.stdout.split() == [completed], done.stderr
    script = console_script(_SPARRING_COMPLETE="source_bash")
    assert "_SPARRING_COMPLETE=complete_bash" in script.stdout.replace(" ", "")
