"""The command line of Sparring: `python -m sparring COMMAND --help` explains each command."""

import sys
from typing import Annotated

import typer

from sparring import params, profiles

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


def main(arguments: list[str] | None = None) -> None:
    """Run one command; bad input ends in one line on standard error and exit code 1."""
    try:
        app(arguments, prog_name="python -m sparring")
    except params.InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


@app.callback()
def commands() -> None:
    """Train image classifiers against a stored gallery of opponents."""


@app.command()
def profile(
    name: Annotated[str, typer.Argument(help="A file of profiles/, without .yaml.")],
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A value on top of the profile; may be given several times."),
    ] = None,
) -> None:
    """Write params.yaml from a profile and print what changed.

    For example: python -m sparring profile paper --set training.epochs=30 --set attacks.bim.steps=10
    """
    for line in profiles.apply(name, settings or []) or ["nothing changed"]:
        print(line)


@app.command()
def check() -> None:
    """Validate params.yaml."""
    values = params.load()
    print(
        f"{params.PARAMS_FILE} is valid: data {values.data.source}; attacks {', '.join(values.attacks)}; "
        f"structures {', '.join(values.structures) or 'none'}"
    )


if __name__ == "__main__":
    main()
