"""Files written atomically, folders locked by one process, temporary folders."""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO, TextIO

from trainable.core.errors import InputError

LOCK = ".lock"  # the file that the process which holds a folder locks
IN_USE = ".in_use"  # the file that a scratch folder's process holds


@contextlib.contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
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


def is_locked(folder: Path) -> bool:
    """Does a process hold a folder?"""
    try:
        with (folder / LOCK).open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # it was never held
        return False
    return False


_shared_locks: dict[Path, TextIO] = {}  # the files that this process is present at


def hold_shared_lock(path: Path) -> None:
    """Be present at a file until this process ends, however it ends; many may be. Nothing where its folder is not."""
    if path not in _shared_locks and path.parent.is_dir():
        file = path.open("a")
        fcntl.flock(file, fcntl.LOCK_SH)
        _shared_locks[path] = file


def wait_for_exclusive_lock(path: Path, timeout: float) -> None:
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
def scratch_dir(prefix: str) -> Iterator[Path]:
    """A temporary folder; those of this prefix whose process was killed are removed, and this one at the end."""
    for file in Path(tempfile.gettempdir()).glob(f"{prefix}*/{IN_USE}"):
        with contextlib.suppress(OSError), file.open("a") as other:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(file.parent, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=prefix) as name, Path(name, f"{IN_USE}.new").open("w") as own:
        fcntl.flock(own, fcntl.LOCK_EX)
        Path(own.name).rename(Path(name, IN_USE))  # where others look for it, once it is locked
        yield Path(name)


def atomic_write_text(path: Path, text: str) -> None:
    """Write a text file; a reader, also after a kill, sees the old one or the new one, whole."""
    aside = path.with_name(f".{path.name}.new")
    aside.write_text(text)
    aside.replace(path)


def process_exists(pid: int) -> bool:
    """Whether a process of this machine runs."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # alive, and another user's
        pass
    return True


def atomic_write(path: Path, write: Callable[[BinaryIO], None], *, fsync: bool = True) -> None:
    """Write a file under a temporary name, then rename it to `path`.

    fsync: flush it to the disk first, so that it survives a crash of the machine.
    """
    aside = path.with_name(f".{path.name}.new")
    try:
        with aside.open("wb") as file:
            write(file)
            file.flush()
            if fsync:
                os.fsync(file.fileno())
        aside.replace(path)
    except (OSError, RuntimeError) as error:  # torch's writer makes a RuntimeError of an error of the disk
        cause = error.__context__ if isinstance(error, RuntimeError) else error
        if isinstance(cause, OSError):
            raise OSError(cause.errno, cause.strerror, str(path)) from None
        raise
    finally:
        aside.unlink(missing_ok=True)


def atomic_copy(source: Path, path: Path, *, fsync: bool = True) -> None:
    """Copy a file; a reader sees an old one or the new one, whole. fsync: as in atomic_write."""
    with source.open("rb") as file:
        atomic_write(path, partial(shutil.copyfileobj, file, length=2**24), fsync=fsync)


def fsync_path(path: Path) -> None:
    """Have a file, or a folder's list of names, on disk before what follows."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
