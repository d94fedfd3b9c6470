"""One of the processes of a RankGroup: does the work that it is given, and answers the process that started it."""

from __future__ import annotations

import ctypes
import io
import logging
import os
import pickle
import signal
import sys
import threading
import traceback
from enum import StrEnum
from multiprocessing.connection import Client, Connection
from queue import SimpleQueue
from types import FrameType
from typing import Any, NamedTuple, NoReturn

import torch
import torch.distributed as dist

from trainable.core.logger import init_logger, logger
from trainable.core.ranks import Launch, join, rank
from trainable.core.signals import forget_end_request, handle_end_signals, request_end

END = b"end"  # asks a process to end its work at the same step as the others
PR_SET_PDEATHSIG = 1  # of Linux's prctl


class Kind(StrEnum):
    """What a message from a process to the one that started it is."""

    PRINT = "print"  # text for standard output
    TELL = "tell"  # a value; no answer is waited for
    ASK = "ask"  # a value; the process waits until it was handled
    DONE = "done"  # the work has ended, with its result
    ENDED = "ended"  # the work was ended by a request
    FAILED = "failed"  # the work has raised an exception


class Setup(NamedTuple):
    """What a process gets first. host, port: of the store. threads: of the CPU, for torch."""

    launch: Launch
    host: str
    port: int
    cuda: bool
    threads: int


class RankLink:
    """The connection of this process to the one that started it, with which it ends."""

    def __init__(self, connection: Connection) -> None:
        self.connection, self.lock = connection, threading.Lock()
        self.received: SimpleQueue[bytes] = SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        """Take what is sent; end this process once the other one has ended, also while it waits for other ranks."""
        try:
            while True:
                if (message := self.connection.recv_bytes()) != END:
                    if message:  # new work, no answer
                        forget_end_request()
                    self.received.put(message)
                    continue
                request_end()  # which AgreedEnd notes, also if it is entered later
        except (EOFError, OSError):
            os._exit(1)

    def receive(self) -> Any:
        """Wait for what the other process sends next, and return it."""
        return pickle.loads(self.received.get())

    def send(self, kind: Kind, value: Any) -> None:
        """Send a message; may be called from any thread."""
        with self.lock:
            self.connection.send((kind, value))

    def tell(self, value: Any) -> None:
        """Hand a value to `on_message` of RankGroup.run, without waiting."""
        sys.stdout.flush()
        self.send(Kind.TELL, value)

    def ask(self, value: Any) -> None:
        """Hand a value to `on_message` of RankGroup.run, and wait until it has returned, or has ended the work."""
        sys.stdout.flush()
        self.send(Kind.ASK, value)
        self.received.get()


class LinkedOutput(io.TextIOBase):
    """Standard output of rank 0: what is flushed is printed by the process that started it."""

    def __init__(self, link: RankLink) -> None:
        self.link, self.parts = link, list[str]()

    def write(self, text: str) -> int:
        """Keep a text for the next flush."""
        self.parts.append(text)
        return len(text)

    def flush(self) -> None:
        """Send what was written."""
        parts, self.parts = self.parts, []
        if text := "".join(parts):
            self.link.send(Kind.PRINT, text)


def main() -> NoReturn:
    """Join the other processes, then do one piece of work after another, until the process that started this ends."""
    end_with_parent()
    handle_end_signals(ignore)  # a training handles them itself, see AgreedEnd
    init_logger()
    link = RankLink(connect(sys.argv[1]))
    setup: Setup = link.receive()
    logger.addFilter(lambda record: not setup.launch.rank or record.levelno >= logging.ERROR)
    if not setup.launch.rank:
        sys.stdout = LinkedOutput(link)
    torch.set_num_threads(setup.threads)
    try:
        join(setup.launch, dist.TCPStore(setup.host, setup.port, is_master=False), cuda=setup.cuda, all_gpus=True)
    except Exception as error:
        link.send(Kind.FAILED, portable(error))
        link.receive()  # until this process is killed, so that its end is not taken for the reason
    while True:
        link.send(*work_once(link))


def connect(where: str) -> Connection:
    """Return the connection to the process that started this one: a file descriptor, or HOST PORT RANK.

    In the latter case the key of the connection is read from standard input, in hexadecimal digits.
    """
    if where.isdigit():
        return Connection(int(where))
    host, port, number = where.split()
    connection = Client((host, int(port)), authkey=bytes.fromhex(sys.stdin.readline().strip()))
    connection.send(int(number))
    return connection


def work_once(link: RankLink) -> tuple[Kind, Any]:
    """Wait for work, do it, and return how it ended: the message for the process that started this one."""
    try:
        work, arguments = link.receive()
        result = work(link, *arguments)
    except KeyboardInterrupt:
        return Kind.ENDED, None
    except BaseException as error:
        return Kind.FAILED, portable(error)
    finally:
        sys.stdout.flush()
    return Kind.DONE, result if rank() == 0 else None


def portable(error: BaseException) -> Exception:
    """Return an exception that can be sent: the same one if it can be pickled, with its traceback as a note."""
    text = traceback.format_exc()
    copy: Exception = RuntimeError(f"{type(error).__name__}: {error}")
    if isinstance(error, Exception):
        try:
            copy = pickle.loads(pickle.dumps(error))
        except Exception:  # of a class whose constructor takes other arguments, or that is defined in a function
            logger.debug(f"{type(error)} cannot be pickled")
    copy.add_note(f"in process {rank()} of the training:\n{text}")
    return copy


def ignore(number: int, frame: FrameType | None) -> None:
    """Do nothing at a signal that arrives between two trainings."""


def end_with_parent() -> None:
    """Have Linux kill this process when the thread that started it ends, even if this process is frozen."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
