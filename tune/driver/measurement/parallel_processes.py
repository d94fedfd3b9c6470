"""The same work in several new processes at the same time."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing import connection
from multiprocessing.synchronize import Barrier
from typing import Any, TypeVar

Argument = TypeVar("Argument")
Result = TypeVar("Result")
WaitForAll = Callable[[], object]


class ProcessFailed(Exception):
    """A process of run_together failed.

    error_type: the name of its exception, whose traceback is the message; EOFError if the process died, TimeoutError if
    it was too slow.
    """

    def __init__(self, error_type: str, message: str) -> None:
        super().__init__(message)
        self.error_type = error_type


def run_together(
    work: Callable[[Argument, WaitForAll], Result], arguments: Sequence[Argument], timeout: float
) -> list[Result]:
    """Call `work(argument, wait_for_all)` in one new process per argument; return the results in the arguments' order.

    `wait_for_all()` returns when every process has called it, so that what follows runs at the same time.

    Args:
        work: a function that the processes can import; it calls wait_for_all once.
        timeout: seconds that all of it may take, the start of the processes included.

    Raises:
        ProcessFailed: for the first process that raises or dies, or if one is too slow; all are killed then.
    """
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(len(arguments))
    processes = []
    pending: dict[Any, int] = {}  # the connection of each process without a result, and its index
    results: dict[int, Result] = {}
    deadline = time.monotonic() + timeout
    try:
        for index, argument in enumerate(arguments):
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=_run, args=(work, argument, barrier, sender), daemon=True)
            process.start()
            sender.close()  # so that the receiver sees the end of the process
            processes.append(process)
            pending[receiver] = index
        while pending:
            answered = connection.wait(list(pending), max(0.0, deadline - time.monotonic()))
            if not answered:
                raise ProcessFailed("TimeoutError", f"no result after {timeout:g} s")
            for one in answered:
                results[pending.pop(one)] = _receive(one)
    finally:
        for process in processes:
            process.kill()
            process.join()
    return [results[index] for index in range(len(arguments))]


def _receive(receiver: Any) -> Any:
    """Return the result of a process."""
    try:
        result, error_type, message = receiver.recv()
    except EOFError:
        raise ProcessFailed("EOFError", "the process died without a result") from None
    if error_type:
        raise ProcessFailed(error_type, message)
    return result


def _run(
    work: Callable[[Any, WaitForAll], Any], argument: Any, barrier: Barrier, sender: connection.Connection
) -> None:
    """Do the work in its process."""
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    try:
        outcome = work(argument, barrier.wait), "", ""
    except Exception as error:
        outcome = None, type(error).__name__, traceback.format_exc()
    sender.send(outcome)


def _exit_with_parent() -> None:
    """End this process when its parent has ended, also by kill -9: it may wait for all, and occupy a GPU."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
