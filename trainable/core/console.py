"""The console that tables are printed on, and times as text."""

from __future__ import annotations

import os

from rich.console import Console

WIDTH = 150  # columns of a table that does not go to a terminal


def make_console() -> Console:
    """Return a console on standard output; if that is no terminal it is as wide as COLUMNS says, without it WIDTH."""
    console = Console(highlight=False)
    if console.is_terminal:
        return console
    columns = os.environ.get("COLUMNS", "")
    return Console(highlight=False, width=int(columns) if columns.isdecimal() and int(columns) else WIDTH)


def terminal_width() -> int | None:
    """Return the columns of the terminal that standard output goes to; None if it goes elsewhere."""
    console = Console()
    return console.width if console.is_terminal else None


def duration(seconds: float) -> str:
    """Return a number of seconds as 1:05, from an hour on as 2:03:04."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
