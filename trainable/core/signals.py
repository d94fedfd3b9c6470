"""The signals that ask a process to end: Ctrl-C, a batch system's warning, a closed terminal."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

# Slurm's --signal sends the user-defined two, often SIGUSR1, before a job's time is over.
END_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)

Handler = Callable[[int, FrameType | None], Any] | int | None


def handle_end_signals(handler: Callable[[int, FrameType | None], Any]) -> dict[int, Handler]:
    """Have `handler` called at each of END_SIGNALS; return the handlers until now, for restore_handlers.

    A signal that is ignored stays ignored: nohup ignores SIGHUP, and a shell SIGINT for a script's background job. In
    another thread than the main one nothing is changed, as Python allows: Ray Train calls a training there.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}
    before: dict[int, Handler] = {number: signal.getsignal(number) for number in END_SIGNALS}
    heeded = {number: old for number, old in before.items() if old is not signal.SIG_IGN}
    for number in heeded:
        signal.signal(number, handler)
    return heeded


def restore_handlers(handlers: dict[int, Handler]) -> None:
    """Set the handlers that handle_end_signals has returned."""
    for number, handler in handlers.items():
        signal.signal(number, handler)


_end_requested = threading.Event()


def request_end() -> None:
    """Ask this process to end, as by SIGTERM, which may arrive before a training handles it: see end_is_requested."""
    _end_requested.set()
    os.kill(os.getpid(), signal.SIGTERM)


def forget_end_request() -> None:
    """Forget that request_end was called: it was for what has ended since."""
    _end_requested.clear()


def end_is_requested() -> bool:
    """Return whether request_end was called, and not forgotten since."""
    return _end_requested.is_set()
