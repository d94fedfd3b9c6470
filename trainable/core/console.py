"""The console that tables are printed on, and times as text."""

from __future__ import annotations

import os
import textwrap

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


def wrap_prose(text: str) -> str:
    """Return text with its lines broken between words if standard output is a terminal; unchanged otherwise.

    A line is indented by two more columns where it goes on.
    """
    width = terminal_width()
    if width is None:
        return text
    lines = []
    for line in text.split("\n"):
        indent = " " * (len(line) - len(line.lstrip()) + 2)
        broken = textwrap.wrap(
            line,
            width,
            subsequent_indent=indent,
            break_long_words=False,
            break_on_hyphens=False,
        )
        lines += broken if len(line) > width else [line]
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """Return a number of seconds as 1:05, from an hour on as 2:03:04."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
