"""The logger of voxtune: what a command prints line by line goes through it.

Used as a library, voxtune adds no handler, so that Python shows warnings only. An entry point calls `init_logger`.
"""

from __future__ import annotations

import logging
import sys

logger = logging.getLogger("voxtune")


class PlainHandler(logging.Handler):
    """Prints messages as they are: errors on stderr, the rest on stdout.

    The streams are looked up for each message: a trial redirects sys.stdout, and so does a live table, above which the
    message then appears. An error of the stream, such as a full disk, is raised as `print` would raise it.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Print one message."""
        print(self.format(record), file=sys.stderr if record.levelno >= logging.ERROR else sys.stdout, flush=True)


def init_logger() -> None:
    """Print the logger's messages of level INFO and above from now on; a second call changes nothing.

    They no longer reach the handlers of Python's root logger.
    """
    if not any(isinstance(handler, PlainHandler) for handler in logger.handlers):
        logger.addHandler(PlainHandler())
        logger.setLevel(logging.INFO)
        logger.propagate = False
