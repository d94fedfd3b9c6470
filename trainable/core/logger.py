"""The logger of voxtune: what a command prints line by line goes through it.

Used as a library, voxtune adds no handler, so that Python shows warnings only. An entry point calls `init_logger`.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO

logger = logging.getLogger("voxtune")
NO_READER_ERRNOS = (errno.EPIPE, errno.EIO)


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


class LastingStream:
    """A text stream that drops what is written once nobody reads it any more, after one line on stderr.

    So it is when the reader of a pipe has ended (`| head -1`), or a terminal was closed.

    Args:
        stream: with a file descriptor, which leads to os.devnull from then on.
        note: the line.
    """

    def __init__(self, stream: TextIO, note: str) -> None:
        self.stream, self.note = stream, note

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Write a text; return its length."""
        try:
            self.stream.write(text)
        except OSError as error:
            self._drop(error)
        return len(text)

    def flush(self) -> None:
        """Flush what was written."""
        try:
            self.stream.flush()
        except OSError as error:
            self._drop(error)

    def _drop(self, error: OSError) -> None:
        if error.errno not in NO_READER_ERRNOS:
            raise error
        with open(os.devnull, "wb") as devnull:
            os.dup2(devnull.fileno(), self.stream.fileno())
        self.stream.flush()  # what is left of the text that failed
        with contextlib.suppress(OSError):
            print(f"standard output has no reader any more ({error.strerror}); {self.note}", file=sys.stderr)


@contextlib.contextmanager
def outlive_reader(note: str) -> Iterator[None]:
    """Make sys.stdout a LastingStream in this context."""
    with contextlib.redirect_stdout(LastingStream(sys.stdout, note)):
        yield
