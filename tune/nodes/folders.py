"""Does a node see a folder as the driver does? Marks that the driver leaves there, and how a node looks for them.

The driver writes a file, which the node must find, and locks another one, which the node must find locked; the node
writes a file, which the driver must find. How much of that is tried depends on the use of the folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from trainable.core.errors import InputError
from trainable.core.locks import NO_LOCKS_ERRNOS
from trainable.core.storage import Uri, is_uri, list_below, open_storage

PROBE = ".voxtune-probe-"  # begins the names of the files, which are removed at the end
LOCKED = ".lock"  # ends the name of the locked one
NO_NAMES = hashlib.sha256().hexdigest()  # names_digest of an empty folder


class Sight(StrEnum):
    """How a node sees a folder."""

    SEEN = "seen"
    MISSING = "not there"
    EMPTY = "empty"  # as a mount point without its disk
    OTHER = "another one"  # a folder of that path, on another disk
    OWN = "its own"  # not the driver's cache, but the node can have its own there
    READ_ONLY = "not writable"
    UNSHARED = "writes lost"  # what the node writes there does not reach the driver
    UNREACHED = "not reached"  # a place in an object store
    ERROR = "error"


class Use(StrEnum):
    """Who writes to a folder."""

    BOTH = "both"  # the driver and the nodes
    CACHE = "cache"  # the driver, and a node into one of its own if it does not see the driver's
    NOBODY = "nobody"  # its list of names is compared


@dataclass(frozen=True)
class Folder:
    """A folder of the driver, or a place in an object store that nodes are to read."""

    path: Path | Uri
    use: Use


@dataclass(frozen=True)
class FolderMarks:
    """What a node is to look for.

    path: of the folder. token: the content of the probe files, and a part of their names. names: digest of the names in
    a folder to which nobody writes, else "".
    """

    path: str
    use: Use
    token: str
    names: str = ""

    @property
    def probe(self) -> Path:
        """The file that the driver has written."""
        return Path(self.path) / f"{PROBE}{self.token[:8]}"

    def answer(self, node: str) -> Path:
        """Return the file that a node of this id writes."""
        return self.probe.with_name(f"{self.probe.name}-{node}")


@dataclass(frozen=True)
class FolderFacts:
    """A folder as a node sees it.

    free, total: bytes of its file system, or if Sight.OWN of the one on which it would be made; None if the folder
    cannot be seen. locks: whether the driver's lock holds here too; None if that was not tried, or the file system has
    none. error: of the system, in words, or "".
    """

    sight: Sight
    free: int | None = None
    total: int | None = None
    locks: bool | None = None
    error: str = ""


def names_digest(folder: Path) -> str:
    """Return a hash of the names in a folder, without those that begin with a point.

    Raises:
        OSError: the folder cannot be read.
    """
    names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    return hashlib.sha256("\n".join(names).encode(errors="surrogateescape")).hexdigest()


@contextlib.contextmanager
def marked_folders(folders: Mapping[str, Folder], token: str) -> Iterator[dict[str, FolderMarks]]:
    """Leave marks in folders of the driver, by role, for nodes to look for; remove all of them at the end.

    Folders that are written to are made if missing, and those that were made are removed again.

    Raises:
        InputError: a folder cannot be read, or written if it is to be, here.
    """
    with contextlib.ExitStack() as stack:
        marks = {}
        for role, folder in folders.items():
            if isinstance(folder.path, Uri):
                marks[role] = FolderMarks(str(folder.path), folder.use, token)
                continue
            if folder.use != Use.NOBODY:
                marks[role] = stack.enter_context(_probed(role, folder.path, folder.use, token))
                continue
            try:
                marks[role] = FolderMarks(str(folder.path), folder.use, token, names_digest(folder.path))
            except OSError as error:
                raise InputError(f"{role} {folder.path}: cannot be read here ({error.strerror})") from None
        yield marks


@contextlib.contextmanager
def _probed(role: str, path: Path, use: Use, token: str) -> Iterator[FolderMarks]:
    missing = [parent for parent in (path, *path.parents) if not parent.exists()]
    marks = FolderMarks(str(path), use, token)
    try:
        path.mkdir(parents=True, exist_ok=True)
        marks.probe.write_text(token)
        locked = marks.probe.with_name(marks.probe.name + LOCKED).open("a+")
    except OSError as error:
        raise InputError(f"{role} {path}: cannot be written ({error.strerror}); choose another folder") from None
    try:
        with locked:
            with contextlib.suppress(OSError):  # of a file system without locks, which the nodes notice
                fcntl.flock(locked, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield marks
    finally:
        for file in path.glob(f"{marks.probe.name}*"):
            file.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # something has been written there meanwhile
            for made in missing:
                made.rmdir()


def look_at(marks: FolderMarks, node: str) -> FolderFacts:
    """Return how this machine sees a folder; this leaves an answer to the driver's mark. node: id of this machine."""
    if is_uri(marks.path):
        return _look_at_store(marks.path)
    found = disk_of(marks.path)
    try:
        if found.sight == Sight.SEEN:
            found = replace(found, sight=_sight_of(marks))
        if marks.use == Use.CACHE and found.sight in (Sight.MISSING, Sight.EMPTY, Sight.OTHER):
            return _room_for_own(Path(marks.path))
        if marks.use == Use.NOBODY or found.sight != Sight.SEEN:
            return found
        found = replace(found, locks=_is_locked(marks.probe.with_name(marks.probe.name + LOCKED)))
    except OSError as error:
        return FolderFacts(Sight.ERROR, error=f"{error.strerror}")
    if marks.use == Use.BOTH:
        try:
            marks.answer(node).write_text(marks.token)
        except OSError as error:
            return replace(found, sight=Sight.READ_ONLY, error=f"{error.strerror}")
    return found


def _look_at_store(uri: str) -> FolderFacts:
    """Return whether this machine can list what is below a URI."""
    try:
        files, base = open_storage(uri)
        list_below(files, base)
    except (InputError, ImportError) as error:
        return FolderFacts(Sight.UNREACHED, error=str(error))
    except (OSError, ValueError) as error:  # pyarrow's own errors are either
        return FolderFacts(Sight.UNREACHED, error=f"{uri}: {error}")
    return FolderFacts(Sight.SEEN)


def _sight_of(marks: FolderMarks) -> Sight:
    """Return how this machine sees a folder that is there, by the driver's mark or the names in it."""
    path = Path(marks.path)
    if marks.names != NO_NAMES and not any(path.iterdir()):
        return Sight.EMPTY
    if marks.use == Use.NOBODY:
        return Sight.SEEN if names_digest(path) == marks.names else Sight.OTHER
    return Sight.SEEN if marks.probe.exists() and marks.probe.read_text() == marks.token else Sight.OTHER


def _room_for_own(path: Path) -> FolderFacts:
    """Return whether this machine can make a folder of its own at a path, or write to the one there, with the room."""
    place = next(place for place in (path, *path.parents) if place.is_dir())
    try:
        with tempfile.TemporaryFile(dir=place):
            return replace(disk_of(place), sight=Sight.OWN)
    except OSError as error:
        return replace(disk_of(place), sight=Sight.READ_ONLY, error=f"{error.strerror}")


def _is_locked(path: Path) -> bool | None:
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError as error:
            if error.errno not in NO_LOCKS_ERRNOS:
                raise
            return None
    return False


def with_answer(marks: FolderMarks, facts: FolderFacts, node: str) -> FolderFacts:
    """Return the facts of a node after the driver has looked for the node's answer in the folder."""
    if facts.sight != Sight.SEEN or marks.use != Use.BOTH:
        return facts
    try:
        arrived = marks.answer(node).read_text() == marks.token
    except OSError:
        arrived = False
    return facts if arrived else replace(facts, sight=Sight.UNSHARED)


def disk_of(path: str | Path) -> FolderFacts:
    """Return whether this machine has a folder, and the room on its file system."""
    try:
        if not Path(path).is_dir():
            return FolderFacts(Sight.MISSING)
        usage = shutil.disk_usage(path)
    except OSError as error:
        return FolderFacts(Sight.ERROR, error=f"{error.strerror}")
    return FolderFacts(Sight.SEEN, usage.free, usage.total)
