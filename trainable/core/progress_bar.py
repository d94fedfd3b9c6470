"""A progress bar in the terminal."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def progress_bar(label: str, total: int, *, quiet: bool = False) -> Iterator[Callable[..., None]]:
    """Show a bar on stderr while the context is open, if stderr is a terminal and not `quiet`.

    Yields a function to call after each of the `total` items, or with -1 to take one back; without a bar this does
    nothing.
    """
    from rich.console import Console  # here, since a trial shows no bar and its start would wait for the import
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn(label), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    hidden = quiet or not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=hidden) as progress:
        task = progress.add_task(label, total=total)
        yield lambda count=1: progress.advance(task, count)
