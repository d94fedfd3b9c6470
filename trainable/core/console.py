"""The console that tables are printed on, and times as text."""

from __future__ import annotations

from rich.console import Console


def make_console() -> Console:
    """Return a console on standard output, 150 columns wide if that is no terminal."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=150)


def duration(seconds: float) -> str:
    """Return a number of seconds as 1:05, from an hour on as 2:03:04."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
