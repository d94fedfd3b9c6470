"""Work in parallel: over cores, ahead of its use, in the background."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import Any, Self, TypeVar

from trainable.core.errors import InputError

T = TypeVar("T")
R = TypeVar("R")


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_parallel(
    work: Callable[[T], R],
    items: Sequence[T],
    *,
    workers: int = 0,
    tick: Callable[..., None] = lambda: None,
    threads: bool = False,
) -> list[R]:
    """Return work(item) of each item, in the order of the items, computed by worker processes or threads.

    If there is one worker or one item, the calling thread does the work. Without items the list is empty.

    Args:
        work: for processes it, the items and the results must be picklable.
        workers: largest number of processes or threads; 0 for one per core.
        tick: called without arguments after each finished item.
        threads: use threads, not processes.

    Raises:
        InputError: if a worker process was killed. The first exception of `work` is passed on; items that no worker has
            started are then left out.
    """
    workers = min(workers or cores(), len(items))
    if workers <= 1:
        results = []
        for item in items:
            results.append(work(item))
            tick()
        return results
    pool = _start_pool(workers, threads)
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


def _start_pool(workers: int, threads: bool) -> Executor:
    """Return a pool of threads, or of processes that end with this one."""
    if threads:
        return ThreadPoolExecutor(workers)
    context = multiprocessing.get_context("spawn")  # a fork would copy the locks of torch's and rich's threads
    return ProcessPoolExecutor(workers, context, initializer=_end_with_parent)


def _end_with_parent() -> None:
    """End this worker process when its parent is killed; it would otherwise wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def prefetch(work: Callable[[T], R], items: Iterable[T], threads: int) -> Iterator[R]:
    """Yield work(item) of each item, in the order of the items, computed ahead by threads.

    The first `threads` items are started by the call itself; then each result that is requested starts one more item.
    With 0 threads each item is computed when its result is requested. An exception of `work` is raised in place of its
    item's result.
    """
    if not threads:
        return map(work, items)
    pool, remaining = ThreadPoolExecutor(threads, "prefetch"), iter(items)
    pending = deque(pool.submit(work, item) for item in islice(remaining, threads))

    def results() -> Iterator[R]:
        try:
            while pending:
                pending.extend(pool.submit(work, item) for item in islice(remaining, 1))
                yield pending.popleft().result()  # not named: the traceback of an exception would keep the future alive
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    return results()


class BackgroundWorker:
    """Runs one task at a time in a background thread.

    An exception of a task, SystemExit included, is re-raised once, by the next `start`, `wait` or `check`. On exit from
    the context the running task is waited for; if it raises an exception, that replaces the one that ended the context.
    """

    def __init__(self) -> None:
        self.thread = ThreadPoolExecutor(1, "background")
        self.task: Future[Any] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.thread.shutdown()
        self.wait()

    def start(self, work: Callable[[], object]) -> None:
        """Wait for the running task, then start this one; if `wait` raises an exception, this one is not started."""
        self.wait()
        self.task = self.thread.submit(work)

    def wait(self) -> None:
        """Wait for the running task, if any, and re-raise the last task's exception if it was not raised yet."""
        task, self.task = self.task, None  # an exception that is kept would keep alive all that its frames refer to
        try:
            if task is not None:
                task.result()
        finally:
            del task

    @property
    def idle(self) -> bool:
        """True if no task is running."""
        return self.task is None or self.task.done()

    def check(self) -> None:
        """Re-raise the exception of a task that has ended; a running task is not waited for."""
        if self.idle:
            self.wait()
