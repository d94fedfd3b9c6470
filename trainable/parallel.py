"""Work over cores, ahead of other work or behind it, folders that one process holds at a time, files written whole."""

from __future__ import annotations

import contextlib
import fcntl
import multiprocessing
import os
import platform
import shutil
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from pathlib import Path
from typing import Any, Self, TextIO, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from trainable.config import InputError

LOCK = ".lock"  # the file that the process which holds a folder locks
IN_USE = ".in_use"  # the file that a scratch folder's process holds

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


def ahead(work: Callable[[T], R], items: Iterable[T], threads: int) -> Iterator[R]:
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


class Behind:
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


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder, that of a training or of a sweep, and make it where it is not there.

    Errors: InputError where it cannot be written, or is held, naming the process that holds it.
    """
    new, path = not folder.exists(), folder / LOCK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror}); choose another folder") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise InputError(f"{folder} is in use by {file.read().strip()}; wait for it or end it") from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()} since {time.strftime('%Y-%m-%d %H:%M:%S')}")
        file.flush()
        try:
            yield
        finally:
            if new and list(folder.iterdir()) == [path]:  # nothing came of it
                path.unlink()
                folder.rmdir()


def held(folder: Path) -> bool:
    """Does a process hold a folder?"""
    try:
        with (folder / LOCK).open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # it was never held
        return False
    return False


_attended: dict[Path, TextIO] = {}  # the files that this process is present at


def attend(path: Path) -> None:
    """Be present at a file until this process ends, however it ends; many may be. Nothing where its folder is not."""
    if path not in _attended and path.parent.is_dir():
        file = path.open("a")
        fcntl.flock(file, fcntl.LOCK_SH)
        _attended[path] = file


def alone(path: Path, timeout: float) -> None:
    """Wait until no process attends to a file.

    Errors: InputError after `timeout` seconds.
    """
    said, end = False, time.monotonic() + timeout
    with path.open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() > end:
                    raise InputError(
                        f"{path.parent}: processes of its trials still run after {timeout:g} s, though nothing drives "
                        f"them; `fuser {path}` on each node names them: end them"
                    ) from None
                if not said:
                    print("waiting for the processes of trials that were left behind to end")
                said = True
                time.sleep(0.1)


@contextlib.contextmanager
def scratch_folder(prefix: str) -> Iterator[Path]:
    """A temporary folder; those of this prefix whose process was killed are removed, and this one at the end."""
    for file in Path(tempfile.gettempdir()).glob(f"{prefix}*/{IN_USE}"):
        with contextlib.suppress(OSError), file.open("a") as other:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(file.parent, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=prefix) as name, Path(name, f"{IN_USE}.new").open("w") as own:
        fcntl.flock(own, fcntl.LOCK_EX)
        Path(own.name).rename(Path(name, IN_USE))  # where others look for it, once it is locked
        yield Path(name)


def write_whole(path: Path, text: str) -> None:
    """Write a text file; a reader, also after a kill, sees the old one or the new one, whole."""
    aside = path.with_name(f".{path.name}.new")
    aside.write_text(text)
    aside.replace(path)


def alive(pid: int) -> bool:
    """Whether a process of this machine runs."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # alive, and another user's
        pass
    return True
