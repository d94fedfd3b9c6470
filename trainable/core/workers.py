"""Work over cores, ahead of other work or behind it, folders that one process holds at a time, files written whole."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import Any, Self, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from trainable.core.errors import InputError

T = TypeVar("T")
R = TypeVar("R")


@contextlib.contextmanager
def progress_bar(what: str, total: int, *, quiet: bool = False) -> Iterator[Callable[..., None]]:
    """A bar on stderr where that is a terminal; yields what to call once an item is done (or with -1 to undo)."""
    console = Console(stderr=True)
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    hidden = quiet or not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=hidden) as progress:
        task = progress.add_task(what, total=total)
        yield lambda count=1: progress.advance(task, count)


def run_parallel(
    work: Callable[[T], R],
    items: Sequence[T],
    *,
    workers: int = 0,
    tick: Callable[..., None] = lambda: None,
    threads: bool = False,
) -> list[R]:
    """work of each item, in their order, over processes (or threads); tick is called after each.

    workers: 0 for all cores. Errors: work's own, and InputError where a process was killed.
    """
    workers = min(workers or cores(), len(items))
    if workers <= 1:
        results = []
        for item in items:
            results.append(work(item))
            tick()
        return results
    pool: Executor
    if threads:
        pool = ThreadPoolExecutor(workers)
    else:
        context = multiprocessing.get_context("spawn")  # a fork would copy the locks of torch's and rich's threads
        pool = ProcessPoolExecutor(workers, context, initializer=_end_with_parent)
    try:
        futures = [pool.submit(work, item) for item in items]
        for future in as_completed(futures):
            future.result()
            tick()
        return [future.result() for future in futures]
    except BrokenProcessPool:
        raise InputError(
            "a worker process was killed, perhaps for want of memory; try again with fewer workers"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """Let a worker end when its parent is killed; it would otherwise wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def prefetch(work: Callable[[T], R], items: Iterable[T], threads: int) -> Iterator[R]:
    """work of each item, in their order, done by threads before it is asked for: as many items as threads.

    0 threads: done when it is asked for.
    """
    if not threads:
        return map(work, items)
    pool, left = ThreadPoolExecutor(threads, "ahead"), iter(items)
    under_way = deque(pool.submit(work, item) for item in islice(left, threads))

    def results() -> Iterator[R]:
        try:
            while under_way:
                under_way.extend(pool.submit(work, item) for item in islice(left, 1))
                yield under_way.popleft().result()  # without a name: what it raises would be kept by its own traceback
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    return results()


class BackgroundWorker:
    """Work done in a thread of its own, one piece after the other, behind what this thread does meanwhile.

    What a piece raises, SystemExit too, comes up here at the next call. At the end of the context it is waited for, and
    what it raised stands before what ended the context.
    """

    def __init__(self) -> None:
        self.thread = ThreadPoolExecutor(1, "behind")
        self.work: Future[Any] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.thread.shutdown()
        self.wait()

    def start(self, work: Callable[[], object]) -> None:
        """Begin a piece once the one before is done."""
        self.wait()
        self.work = self.thread.submit(work)

    def wait(self) -> None:
        """Wait for the piece under way."""
        work, self.work = self.work, None  # an exception that is kept would keep all that its frames hold
        try:
            if work is not None:
                work.result()
        finally:
            del work

    @property
    def idle(self) -> bool:
        """Is no piece under way?"""
        return self.work is None or self.work.done()

    def check(self) -> None:
        """Raise what the piece has raised; one that is under way is not waited for."""
        if self.idle:
            self.wait()


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
