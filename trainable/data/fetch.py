"""Cases in an object store: their files are fetched into the cache, each once, before they are prepared."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from trainable.cases.folder_listing import is_nifti
from trainable.core.errors import InputError
from trainable.core.files import FULL_DISK_ERRNOS, errors_name
from trainable.core.locks import one_at_a_time
from trainable.core.parallel import run_parallel
from trainable.core.progress_bar import progress_bar
from trainable.core.storage import Uri, list_below, open_storage, read_file, storage_errors
from trainable.data.cache_publish import UNFINISHED, remove_leftovers, unfinished_folder

FETCHED = ".fetched"  # in the cache: by URI, the files of the cases as they are in the store
MAX_DOWNLOADS = 16  # at once


def fetched_folder(uri: Uri, cache: Path) -> Path:
    """Return the folder in a cache for the files below a URI; its time of change tells when the last one came."""
    return cache / FETCHED / hashlib.sha256(uri.encode()).hexdigest()[:12]


def fetch_cases(uri: Uri, cache: Path, *, quiet: bool = False) -> Path:
    """Bring the NIfTI files below a URI into its folder in the cache; return that folder, laid out as the store is.

    A file that is there with the size and the time of last modification of the one in the store is not fetched again,
    and one that the store has no more is removed. Each appears whole. Processes that do this at once for one cache on a
    local disk do so one after the other; where the disk has no locks (NFS) each fetches what it lacks, and none harms
    another. Credentials are those of the environment.

    Args:
        cache: made if missing.
        quiet: print nothing on stderr.

    Raises:
        InputError: if the store cannot be read, has no NIfTI file there, or the cache cannot be written.
    """
    start, folder = time.monotonic(), fetched_folder(uri, cache)
    files, stored = stored_files(uri)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if lacking(folder, stored) or others(folder, stored):
            with one_at_a_time(folder, "fetches cases into"):
                names = lacking(folder, stored)
                with progress_bar("files", len(names), quiet=quiet) as tick:
                    fetch = partial(_fetch_file, files, uri, stored, folder)
                    run_parallel(fetch, names, workers=MAX_DOWNLOADS, tick=tick, threads=True)
                if names and not quiet:
                    size = sum(stored[name].size for name in names) / 2**20
                    done = f"fetched {len(names)} files, {size:.1f} MiB, in {time.monotonic() - start:.1f} s"
                    print(f"{done}, {len(stored) - len(names)} were there: {folder}", file=sys.stderr)
                _remove_others(folder, stored)
                remove_leftovers(folder)
    except OSError as error:
        room = "free some space, or " if error.errno in FULL_DISK_ERRNOS else ""
        raise InputError(f"{folder}: the cases cannot be fetched ({error}); {room}choose another cache_dir") from None
    return folder


def stored_files(uri: Uri) -> tuple[Any, dict[str, Any]]:
    """Return the store's file system, and what it tells of each NIfTI file below a URI, by its name relative to that.

    Raises:
        InputError: if the store cannot be read, or has no NIfTI file there.
    """
    files, base = open_storage(uri)
    with storage_errors(uri):
        infos = [info for info in list_below(files, base, recursive=True) if info.is_file and is_nifti(info.base_name)]
    if not infos:
        raise InputError(f"{uri}: no NIfTI file below it; expected one sub-folder per case there, such as {uri}/CASE")
    return files, {info.path.removeprefix(base + "/"): info for info in infos}


@contextlib.contextmanager
def outline(uri: Uri, cache: Path) -> Iterator[Path]:
    """Yield a temporary folder laid out as the store is, without fetching a file.

    A file that was fetched before, and is as it is in the store now, is a link to it; the others are empty.

    Args:
        cache: may be missing.

    Raises:
        InputError: as stored_files.
    """
    stored, fetched = stored_files(uri)[1], fetched_folder(uri, cache).resolve()
    missing = {*lacking(fetched, stored)}
    with tempfile.TemporaryDirectory(prefix="voxtune-") as temp:
        folder = Path(temp)
        for name in stored:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch() if name in missing else path.symlink_to(fetched / name)
        yield folder


def lacking(folder: Path, stored: dict[str, Any]) -> list[str]:
    """Return the names, relative to the folder, of the stored files that it lacks as they are in the store now."""
    return [name for name, info in stored.items() if _stamp(folder / name) != (info.size, info.mtime_ns)]


def _stamp(path: Path) -> tuple[int, int] | None:
    """Return size in bytes and time of last modification in ns of a file; None if it is missing."""
    try:
        stat = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return stat.st_size, stat.st_mtime_ns


def _fetch_file(files: Any, uri: str, stored: dict[str, Any], folder: Path, name: str) -> None:
    """Fetch a file, with its time of last modification in the store.

    It is written in a folder of its own in `folder`, whose time of change is then that of the file's coming.
    """
    info, path = stored[name], folder / name
    with storage_errors(uri):
        content = read_file(files, info.path)
    if len(content) != info.size:
        raise InputError(f"{uri}: {name} has changed while it was fetched; try again")
    path.parent.mkdir(parents=True, exist_ok=True)
    with errors_name(path), unfinished_folder(folder) as temp:
        new = temp / "file"
        new.write_bytes(content)
        os.utime(new, ns=(info.mtime_ns, info.mtime_ns))
        new.replace(path)


def others(folder: Path, stored: dict[str, Any]) -> list[Path]:
    """Return the files in the folder that the store does not have, without those that are being fetched."""
    found = []
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not UNFINISHED.fullmatch(name)]
        found += [Path(place, name) for name in names]
    return [path for path in found if path.relative_to(folder).as_posix() not in stored]


def _remove_others(folder: Path, stored: dict[str, Any]) -> None:
    """Remove files that the store does not have, and folders that are empty by that; none that a stored file needs."""
    needed = {folder, *(parent for name in stored for parent in (folder / name).parents)}
    for path in others(folder, stored):
        path.unlink(missing_ok=True)
        for parent in path.parents:
            if parent in needed:
                break
            with contextlib.suppress(OSError):  # something else is in it
                parent.rmdir()
