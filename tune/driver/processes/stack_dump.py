"""The stacks of a trial that hangs, written into its stdout.log by its own process before the driver ends it."""

from __future__ import annotations

import faulthandler
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

DUMP_AT = 0.9  # of report_timeout, so that the stacks are written before HangWatchdog ends the process


class StackDump:
    """Writes the stacks of all threads of this process to a file if `seconds` pass without a call of `restart`."""

    def __init__(self, seconds: float, file: TextIO) -> None:
        self.seconds, self.file = seconds, file
        self.restart()

    def restart(self) -> None:
        """Count the seconds from now on; to be called after each report."""
        # The thread that waits is written in C and does not need the GIL, which what hangs may hold.
        faulthandler.dump_traceback_later(self.seconds, file=self.file)


@contextmanager
def dump_stacks_of_hang(stdout_log: Path, report_timeout: float | None) -> Iterator[StackDump | None]:
    """In this context, append the stacks to a trial's stdout.log after DUMP_AT of report_timeout without a report.

    Yields the StackDump to restart at each report. Yields None, and nothing is written, without a timeout or if the
    run's folder is not on this machine.
    """
    if report_timeout is None or not stdout_log.parents[2].is_dir():
        yield None
        return
    stdout_log.parent.mkdir(parents=True, exist_ok=True)
    with stdout_log.open("a") as file:
        dump = StackDump(DUMP_AT * report_timeout, file)
        try:
            yield dump
        finally:
            faulthandler.cancel_dump_traceback_later()
