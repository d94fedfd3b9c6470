"""Locks between processes: folders locked by one process, files locked by many workers, temporary folders.

All are flock locks, which the kernel releases when the process ends, also by kill -9. Every file is opened for reading
and writing: NFSv4 gives a shared lock only on a file open for reading, an exclusive one only on one open for writing.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from trainable.core.errors import InputError
from trainable.core.files import errors_name
from trainable.core.logger import logger

LOCK = ".lock"  # file in a folder that the process that uses the folder locks
QUIET_SECONDS = 3.0  # of a wait, before it is printed
LOST_NODE_SECONDS = 180.0  # in which a file server should notice that a machine is lost, which held a lock
IN_USE = ".in_use"  # file in a scratch folder that its process locks
NO_LOCKS_ERRNOS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)  # of a file system without locks


@contextlib.contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Lock the folder of a training or a sweep while the context is open; create the folder if it does not exist.

    If the folder was created here and contains nothing but its lock file at the end, it is removed; otherwise the lock
    file stays, unlocked.

    A process on another machine that has locked it is waited for, LOST_NODE_SECONDS at most: it may be a lost one.

    Raises:
        InputError: if the folder cannot be written, is on a file system without locks, or is locked already; the
            message names the process that locked it.
    """
    path = folder / LOCK
    file, new = _locked_file(folder)
    with file:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()} since {time.strftime('%Y-%m-%d %H:%M:%S')}")
        file.flush()
        try:
            yield
        finally:
            if new and folder.is_dir() and list(folder.iterdir()) == [path]:  # it may have been moved
                path.unlink()
                folder.rmdir()


def _locked_file(folder: Path) -> tuple[TextIO, bool]:
    """Return the lock file of a folder, open and locked as lock_folder says, and whether the folder was made here."""
    path = folder / LOCK
    while True:
        new = not folder.exists()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = path.open("a+")
        except OSError as error:
            raise InputError(f"{folder}: cannot be written ({error.strerror}); choose another folder") from None
        with contextlib.ExitStack() as unless_locked:
            unless_locked.enter_context(file)
            try:
                with errors_name(path):
                    _lock_once_free(file, folder)
            except OSError as error:
                if error.errno not in NO_LOCKS_ERRNOS:
                    raise
                raise InputError(
                    f"{folder}: its file system cannot lock files ({error.strerror}), so a second process could write "
                    "into the folder unnoticed; choose a folder on another file system, or have this one mounted with "
                    "locks (Lustre: -o flock). A sweep's checkpoints can stay on it: --storage"
                ) from None
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), path.stat()):  # else its process has removed it meanwhile
                    unless_locked.pop_all()
                    return file, new


def _lock_once_free(file: TextIO, folder: Path) -> None:
    """Lock the open lock file of a folder, as lock_folder says."""
    end = None
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if not is_locked(folder):  # another process only asks whether it is, or has just unlocked it
                time.sleep(0.001)
                continue
            file.seek(0)
            holder, now = file.read().strip(), time.monotonic()
            elsewhere = holder and f" on {platform.node()} since " not in holder
            if not elsewhere or (end is not None and now > end):
                raise InputError(f"{folder} is in use by {holder}; wait for it or end it") from None
            if end is None:
                end = now + LOST_NODE_SECONDS
                logger.info(f"waits up to {LOST_NODE_SECONDS:g} s for {folder}, in use by {holder}, which may be lost")
            time.sleep(0.2)


@contextlib.contextmanager
def one_at_a_time(folder: Path, doing: str) -> Iterator[None]:
    """While the context is open keep other processes out of the contexts of the same folder; wait for one that is in.

    The folder itself is locked, so that no file is left in it. Where that cannot be done (NFS), nothing is waited for:
    only for work that is right, if twice the work, when two processes do it at once.

    Args:
        folder: must exist.
        doing: what the other process does, for the line that is logged if there is a wait.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                logger.info(f"waiting for another process, which {doing} {folder}")
                fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def is_locked(folder: Path) -> bool:
    """Return whether a process holds a folder's `lock_folder` now; False for a missing folder too."""
    try:
        with (folder / LOCK).open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # it was never locked
        return False
    return False


def wait_until_unlocked(folder: Path, seconds: float) -> bool:
    """Wait until no process holds a folder's `lock_folder`; return whether that is so within this time.

    The lock of a killed process is released at once; that of a process on a lost node only when the file server
    notices, and a line is printed meanwhile.
    """
    started, said = time.monotonic(), False
    while is_locked(folder):
        passed = time.monotonic() - started
        if passed > seconds:
            return False
        if passed > QUIET_SECONDS and not said:
            logger.info(f"waits up to {seconds:g} s for {folder}, which another process still uses, as on a lost node")
            said = True
        time.sleep(0.1)
    return True


_shared_locks: dict[Path, TextIO] = {}  # open files that this process has locked until it exits


def hold_shared_lock(path: Path) -> None:
    """Hold a shared lock on a file until this process exits; `wait_for_exclusive_lock` waits for all such processes.

    The file is made if missing. If its folder does not exist, nothing is locked; nor, after a warning, on a file system
    without locks.
    """
    if path not in _shared_locks and path.parent.is_dir():
        file = path.open("a+")
        with _unlockable(path):
            fcntl.flock(file, fcntl.LOCK_SH)
        _shared_locks[path] = file


def wait_for_exclusive_lock(path: Path, timeout: float) -> None:
    """Wait until no process holds a lock on a file, which is made if missing; log a line if there is a wait.

    On a file system without locks nothing is waited for, after a warning.

    Raises:
        InputError: if a process still holds one after `timeout` seconds.
    """
    warned, end = False, time.monotonic() + timeout
    with path.open("a+") as file, _unlockable(path):
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() > end:
                    raise InputError(
                        f"{path.parent}: processes of its trials still run after {timeout:g} s, though nothing drives "
                        f"them; `fuser {path}` on each node names them: end them. If their node is lost, start again "
                        "once the file server has released its locks"
                    ) from None
                if not warned:
                    logger.info("waiting for the processes of trials that were left behind to end")
                warned = True
                time.sleep(0.1)


@contextlib.contextmanager
def _unlockable(path: Path) -> Iterator[None]:
    """Turn the error of a file system without locks into a warning that says what is lost; name the path in others."""
    try:
        with errors_name(path):
            yield
    except OSError as error:
        if error.errno not in NO_LOCKS_ERRNOS:
            raise
        logger.warning(
            f"{path}: the file system cannot lock files ({error.strerror}); after a killed driver, wait until the "
            "processes of its trials have ended before you resume"
        )


@contextlib.contextmanager
def scratch_dir(prefix: str) -> Iterator[Path]:
    """Yield a new temporary folder whose name starts with `prefix`; it is removed when the context ends.

    Before that, older folders of this prefix are removed whose process was killed; none on a file system without locks.
    """
    for file in Path(tempfile.gettempdir()).glob(f"{prefix}*/{IN_USE}"):
        with contextlib.suppress(OSError), file.open("r+") as other:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(file.parent, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=prefix) as name, Path(name, f"{IN_USE}.new").open("w+") as own:
        with contextlib.suppress(OSError):  # without locks only what a kill leaves is not removed
            fcntl.flock(own, fcntl.LOCK_EX)
        Path(own.name).rename(Path(name, IN_USE))  # visible to other processes only once it is locked
        yield Path(name)


def process_exists(pid: int) -> bool:
    """Return whether this machine has a process of this id: any user's, also one that ended and is not reaped yet."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # alive, and another user's
        pass
    return True
