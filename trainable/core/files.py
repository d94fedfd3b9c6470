"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import resource
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO

from trainable.core.errors import InputError

UNSUPPORTED_ERRNOS = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF)
FULL_DISK_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
OPEN_FILES_ERRNOS = (errno.EMFILE, errno.ENFILE)
OPEN_FILES_ADVICE = "too many files are open here; allow more with `ulimit -n`, or close other programs"


def atomic_write(path: Path, write: Callable[[BinaryIO], object], *, fsync: bool = True) -> None:
    """Write a file under a temporary name in the same folder, then rename it to `path`.

    A reader, also after a kill, sees the old file or the new one, whole. The temporary name is always the same, so only
    one process at a time may write a path.

    Args:
        write: writes the content into the open binary file.
        fsync: flush the file to the disk before the rename, so that `path` is whole also after a crash of the machine.
            Pass False only for files that are written again soon, or copied elsewhere at once.

    Raises:
        OSError: naming `path`, if it cannot be written (a full disk, no such folder). Other exceptions of `write` are
            passed on. After both the old file is still whole.
    """
    temp = path.with_name(f".{path.name}.new")
    try:
        with temp.open("wb") as file:
            write(file)
            file.flush()
            if fsync:
                os.fsync(file.fileno())
        temp.replace(path)
    except (OSError, RuntimeError) as error:  # torch's writer turns an error of the disk into a RuntimeError
        cause = error.__context__ if isinstance(error, RuntimeError) else error
        if isinstance(cause, OSError):
            raise OSError(cause.errno, cause.strerror, str(path)) from None
        raise
    finally:
        with contextlib.suppress(OSError):  # of a read-only file system, also if there is none
            temp.unlink(missing_ok=True)


def refuse_unusable(path: Path, option: str, example: str) -> None:
    """Raise InputError if a file cannot be made at a path that a user has given: a folder, or one that is missing.

    Args:
        path: of the file.
        option: that gave it, such as -o.
        example: a name for the file.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder; give {option} the name of a file, such as {path / example}")
    if not path.parent.is_dir():
        raise InputError(f"{path.parent}: no such folder; make it, or choose another place with {option}")


@contextlib.contextmanager
def unwritable_as_input_error(path: Path, option: str) -> Iterator[None]:
    """Raise InputError, with the path that a user has given by an option, for an OSError in this context."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); choose another place with {option}") from None


def atomic_write_text(path: Path, text: str, *, fsync: bool = True) -> None:
    """Write a text file as UTF-8 by `atomic_write`."""
    atomic_write(path, lambda file: file.write(text.encode()), fsync=fsync)


def atomic_copy(source: Path, path: Path, *, fsync: bool = True) -> None:
    """Copy a file's content by `atomic_write`.

    Raises:
        OSError: if `source` cannot be opened, or as atomic_write does.
    """
    with source.open("rb") as file:
        atomic_write(path, partial(shutil.copyfileobj, file, length=2**24), fsync=fsync)


def link_or_copy(source: Path, path: Path) -> None:
    """Make `path` a hard link to a file that is never changed, only replaced; a copy, not flushed, where none can be.

    A reader, also after a kill, sees the old file or the new one, whole.

    Raises: as atomic_copy.
    """
    temp = path.with_name(f".{path.name}.new")
    temp.unlink(missing_ok=True)
    try:
        os.link(source, temp)
    except OSError:
        atomic_copy(source, path, fsync=False)
    else:
        temp.replace(path)


def file_digest(path: Path) -> str:
    """Return 12 hex digits of a file's SHA-256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]


def join_digests(digests: Sequence[str]) -> str:
    """Return 12 hex digits that tell files by their digests, whatever their order; of a single file its own digest."""
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256("".join(sorted(digests)).encode()).hexdigest()[:12]


@contextlib.contextmanager
def errors_name(path: Path) -> Iterator[None]:
    """In this context, add the path to an OSError that names none, as those of a write or a lock do not."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from None


def fsync_path(path: Path) -> None:
    """Flush a file, or a folder's list of names, to the disk; a folder only if its file system can do that.

    Raises:
        OSError: naming `path`.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        with errors_name(path):
            os.fsync(handle)
    except OSError as error:
        if not (path.is_dir() and error.errno in UNSUPPORTED_ERRNOS):
            raise
    finally:
        os.close(handle)


def require_working_folder() -> None:
    """Raise InputError if this process's working folder was deleted: libraries of torch then end the process."""
    try:
        os.getcwd()
    except FileNotFoundError:
        raise InputError("the working folder was deleted; change into one that exists, such as `cd ~`") from None


def raise_open_files_limit() -> int:
    """Raise the number of files that this process may open to the highest that it may set itself; return it.

    The usual limit on Linux, 1024, is kept low only for programs that use `select`.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):  # macOS refuses its own unlimited
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft if soft != resource.RLIM_INFINITY else 2**20


def user_path(given: str | Path) -> Path:
    """Return a path as a user has written it, with ~ as the home folder (a shell expands none behind `=`).

    Raises:
        InputError: the text is empty, which pathlib reads as the current folder; or the path is not UTF-8, so that
            neither Ray nor a YAML can hold it.
    """
    if given == "":
        raise InputError("a path is empty; . is the current folder")
    path = Path(given)
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise InputError(f"{os.fsencode(path)!r}: these bytes are not UTF-8; rename the file or folder") from None
    try:
        return path.expanduser()
    except RuntimeError:  # there is no such user, or no home
        return path
