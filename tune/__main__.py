"""Entry point of `voxtune` and `python -m tune`."""

import signal
import sys
from types import FrameType

import typer

from trainable.core.errors import InputError
from tune.cli import app


def main() -> None:
    """Run a verb. Exit code 2 for wrong input, 130 and 143 for Ctrl-C and SIGTERM."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    try:
        app()
    except (InputError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)


def stop(number: int, _: FrameType | None) -> None:
    """End a verb that a signal came to; a running sweep ends by itself, see tune.driver.sweep.Ending."""
    typer.echo(f"\nstopped by {signal.Signals(number).name}; what was finished is kept", err=True)
    sys.exit(128 + number)


if __name__ == "__main__":
    main()
