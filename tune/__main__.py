"""Entry point of `voxtune` and `python -m tune`."""

import sys

import typer

from trainable.config import InputError
from tune.cli import app


def main() -> None:
    """Run a verb; exit code 2 for wrong input, 130 for Ctrl-C."""
    try:
        app()
    except InputError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
