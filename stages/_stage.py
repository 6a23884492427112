"""How every stage starts: this checkout's own code, one line for bad input, a non-zero exit for any failure."""

import sys
from collections.abc import Callable
from pathlib import Path

# A queued experiment runs in a copy of the repository, where the installed package would be the original's code.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

import typer

from sparring.params.errors import InputError


def run(main: Callable[..., None]) -> None:
    """Run a stage's main function with the command line's arguments (`--help` prints the script's docstring)."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(help=sys.modules[main.__module__].__doc__)(main)
    try:
        app()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
