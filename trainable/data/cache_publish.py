"""How a case gets into the cache: finished under another name and then renamed, so it is whole or does not exist."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from trainable.cases.case_files import Case
from trainable.core.errors import InputError
from trainable.core.files import fsync_path
from trainable.core.locks import process_exists
from trainable.data.cache import ARRAYS, METADATA
from trainable.data.cache_check import Reading, is_current

UNFINISHED = re.compile(r"\..+\.(\d+)\.[0-9a-f]{8}\.(tmp|old)")  # with the writer's process id
LEFTOVER_AGE = 3600  # seconds; a writer on another machine seems dead from this one, but does not take that long


@contextlib.contextmanager
def unfinished_folder(folder: Path) -> Iterator[Path]:
    """Yield a new folder in a folder, named as no other one; what is still there at the end is removed.

    In the cache a case is written into it, which `publish` renames.
    """
    # without the case's name, which may be as long as a name can be
    temp = folder / f".case.{os.getpid()}.{secrets.token_hex(4)}.tmp"
    try:
        temp.mkdir()
        yield temp
    finally:
        shutil.rmtree(temp, ignore_errors=True)


def publish(temp: Path, folder: Path, reading: Reading, case: Case) -> None:
    """Flush a finished case to the disk and rename it to its final name; another writer may be doing the same.

    Args:
        temp: of unfinished_folder, with the case's files.
        folder: the cache.

    Raises:
        OSError: if the disk fails.
        InputError: if other processes keep writing the case too.
    """
    for file in (*ARRAYS, METADATA, "."):
        fsync_path(temp / file)
    path = folder / case.name
    for _ in range(20):
        if is_current(folder, reading, case):
            return
        old = temp.with_suffix(".old")
        # Renamed, not overwritten: trials that have mapped the old arrays keep them.
        with contextlib.suppress(FileNotFoundError):
            path.rename(old)
        try:
            temp.rename(path)
            fsync_path(folder)
            return
        except OSError:  # another writer's folder appeared between the two renames
            if not path.exists():
                raise
        finally:
            shutil.rmtree(old, ignore_errors=True)
    raise InputError(f"{path}: other processes keep replacing it; let one prepare run at a time")


def remove_leftovers(folder: Path) -> None:
    """Remove unfinished folders of writers that died long ago."""
    for path in folder.glob(".*.*.*"):
        match = UNFINISHED.fullmatch(path.name)
        with contextlib.suppress(OSError):
            if match and time.time() - path.stat().st_mtime > LEFTOVER_AGE and not process_exists(int(match[1])):
                shutil.rmtree(path, ignore_errors=True)
