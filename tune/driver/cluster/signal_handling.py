"""Signals that end a sweep, or a set of trainings, so that it can be resumed."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from trainable.core.signals import END_SIGNALS, handle_end_signals, restore_handlers
from tune.driver.cluster import ray_compat

SHUTDOWN_GRACE_SECONDS = 20  # seconds from a signal to an end that waits for nothing
DEAF_SECONDS = 5  # seconds from a signal to that end if the main thread runs no Python meanwhile


class SignalHandling(ABC):
    """What drives Ray's processes and ends them at a signal: at the first one cleanly, else at once."""

    def __init__(self) -> None:
        self.signal = 0  # its number, after one was received
        self.error = ""  # why the work cannot go on now: it ends with exit code 1
        self.noted = threading.Event()  # set when the main thread has noted a signal
        self.finished = threading.Event()  # set when nothing is waited for any more

    @property
    def signal_name(self) -> str:
        """The name of the signal that was received, such as SIGTERM; "" for none."""
        return signal.Signals(self.signal).name if self.signal else ""

    @abstractmethod
    def message(self) -> str:
        """Return why the work ended and how to go on, as printed at its end."""

    @contextmanager
    def handle_signals(self) -> Iterator[None]:
        """Handle END_SIGNALS in this context: the first one ends the work cleanly; those that are ignored stay so.

        The whole process ends at once at a second Ctrl-C, if the clean end takes over SHUTDOWN_GRACE_SECONDS (a trial
        does not answer), or if Ray has died: a signal to the whole process group kills Ray too, whose code may then end
        this process at any moment with exit code 1. The journal is complete at every moment, so that an end at once
        loses no more than a kill does. A second SIGTERM is ignored, since Ray's processes may send one when they end.

        The main thread waits inside Ray for up to a minute after a cluster elsewhere has died, and Python calls no
        handler meanwhile: see hear. Such a cluster is asked whether it answers once a second.
        """
        stop_listening, before = call_in_thread(self.hear), handle_end_signals(self.note)
        try:
            yield
        finally:
            stop_listening()
            if not self.signal:  # else wait_and_leave also limits what comes after the trials
                self.finished.set()
                restore_handlers(before)

    def note(self, number: int, _: FrameType | None = None) -> None:
        """Handle a signal, see handle_signals. Called by Python in the main thread."""
        self.noted.set()
        if not self.signal:
            self.signal = number
            threading.Thread(target=self.wait_and_leave, daemon=True).start()
        elif number == signal.SIGINT:
            self.leave()

    def hear(self, number: int) -> None:
        """End the process at a signal that the main thread does not note within DEAF_SECONDS. Called in a thread."""
        if number in END_SIGNALS and not self.noted.wait(DEAF_SECONDS):
            self.signal = number
            self.leave()

    def exit_if_ended_early(self) -> None:
        """Wait for nothing any more, and end the process if a signal or an error has ended the work.

        Raises:
            SystemExit: after a signal with 128 + its number, after an error with 1.
        """
        self.finished.set()
        if self.signal:
            raise SystemExit(128 + self.signal)
        if self.error:
            raise SystemExit(1)

    def wait_and_leave(self) -> None:
        """Wait until `finished` is set; end the process if Ray has died or SHUTDOWN_GRACE_SECONDS are over."""
        end = time.monotonic() + SHUTDOWN_GRACE_SECONDS
        while not self.finished.wait(0.05 if ray_compat.started_here() else 1):
            if ray_compat.cluster_died() or time.monotonic() > end:
                self.leave()

    def leave(self) -> None:
        """Print how to go on, and end the process at once; Ray's processes end with it."""
        with suppress(OSError):  # of a terminal that was closed
            print(self.message(), flush=True)  # not by the logger, whose lock another thread may hold
            sys.stderr.flush()
        os._exit(128 + self.signal)


def call_in_thread(hear: Callable[[int], None]) -> Callable[[], None]:
    """Have a function called in a thread with the number of each signal that Python handles, one after the other.

    Python writes the number to a socket as the signal arrives, also if the main thread runs C++. To be called in the
    main thread.

    Returns:
        A function that ends this. To be called in the main thread too.
    """
    receiving, sending = socket.socketpair()
    sending.setblocking(False)

    def listen() -> None:
        with receiving:
            while number := receiving.recv(1):
                hear(number[0])

    def stop() -> None:
        signal.set_wakeup_fd(before)
        sending.close()

    threading.Thread(target=listen, daemon=True).start()
    before = signal.set_wakeup_fd(sending.fileno(), warn_on_full_buffer=False)
    return stop
