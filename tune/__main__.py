"""Entry point of `voxtune` and `python -m tune`."""

import signal
import sys
from types import FrameType

import typer

from trainable.core.errors import InputError
from trainable.core.logger import init_logger
from tune.cli import app


def main() -> None:
    """Run a verb. Exit code 2 for wrong input or an OSError, 130 after Ctrl-C, 143 after SIGTERM, or the verb's own."""
    init_logger()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    try:
        app()
    except (InputError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)


def stop(number: int, _: FrameType | None) -> None:
    """End this process with exit code 128 + number, and print that what was finished is kept.

    A running sweep (see tune.driver.sweep_stopper.SweepStopper) and `voxtune train` handle these signals themselves.
    """
    typer.echo(f"\nstopped by {signal.Signals(number).name}; what was finished is kept", err=True)
    sys.exit(128 + number)


if __name__ == "__main__":
    main()
