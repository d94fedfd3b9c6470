"""Work in parallel: over cores, ahead of its use, in the background."""

from __future__ import annotations

import math
import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from pathlib import Path
from typing import Any, Self, TypeVar

from trainable.core.errors import InputError

CGROUPS = Path("/sys/fs/cgroup")
T = TypeVar("T")
R = TypeVar("R")


def cores() -> int:
    """Return the number of cores that this process may use, at least 1.

    A batch system or `taskset` limits it to some cores, a container's CPU quota to the time of some, rounded down.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min(allowed, cpu_quota())))


def cpu_quota(root: Path = CGROUPS, membership: Path = Path("/proc/self/cgroup")) -> float:
    """Return the CPU quota of this process's control groups, in cores; inf without one.

    Args:
        root: where the control groups are mounted: of version 2 here, of version 1 in the sub-folders "cpu" and
            "cpu,cpuacct".
        membership: the kernel's file of this process's groups, lines HIERARCHY:CONTROLLERS:PATH.
    """
    quota = math.inf
    for line in _lines(membership):
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        for mounted in {root, root / "unified"} if not controllers else {root / "cpu", root / controllers}:
            group = mounted / path.lstrip("/")
            for folder in (group, *group.parents):  # each group above limits it too; a container shows its own as root
                if folder.is_relative_to(mounted):
                    quota = min(quota, _quota_of(folder))
    return quota


def _quota_of(group: Path) -> float:
    """Return the quota of one control group of version 2 or 1 in cores; inf if it has none."""
    words = " ".join(_lines(group / "cpu.max")).split()
    words = words or _lines(group / "cpu.cfs_quota_us") + _lines(group / "cpu.cfs_period_us")
    if len(words) != 2 or not all(word.isdigit() for word in words):  # "max", or -1 in version 1
        return math.inf
    return int(words[0]) / int(words[1])


def _lines(path: Path) -> list[str]:
    """Return the lines of a file of the kernel; none if it cannot be read."""
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


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
