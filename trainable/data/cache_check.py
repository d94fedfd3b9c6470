"""Check whether the cache has a case as it is now: whole, read in the same way, and from the same files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from isal import isal_zlib

from trainable.cases.case_files import Case
from trainable.cases.grid import Spacing
from trainable.cases.intensities import Background
from trainable.cases.labels import LABELS_2021, LabelConvention
from trainable.data.cache import ARRAYS, CaseMetadata, FileInfo, read_metadata

CHUNK = 2**20  # bytes of a file that are read at once


@dataclass(frozen=True)
class Reading:
    """How cases are read.

    Attributes:
        labels: what the values of the seg files mean.
        background: the option of this name.
        spacing: the voxel size in mm that cases are resampled to; "file": that of their files; "ready": as they are in
            the cache, and that of their files for a case that is not ready.
    """

    labels: LabelConvention = LABELS_2021
    background: Background = 0.0
    spacing: Spacing | Literal["file", "ready"] = "ready"

    @property
    def resampled_to(self) -> list[float] | None:
        """The voxel size that a case is resampled to; None for that of its files."""
        return None if isinstance(self.spacing, str) else list(self.spacing)


PLAIN_READING = Reading()


def is_current(folder: Path, reading: Reading, case: Case) -> bool:
    """Return whether the cache has this case, whole, read in this way and prepared from its present source."""
    return is_whole(folder / case.name, reading, case)


def is_whole(path: Path, reading: Reading, case: Case) -> bool:
    """Return what is_current does, of the folder of one prepared case."""
    try:
        metadata = read_metadata(path)
        return _is_of_source(metadata, reading, case) and metadata["files"] == checksums(path)
    except (OSError, ValueError, KeyError):
        return False


def is_of_source(folder: Path, reading: Reading, case: Case) -> bool:
    """Return what is_current does without verifying the checksums of the arrays."""
    try:
        return _is_of_source(read_metadata(folder / case.name), reading, case)
    except (OSError, ValueError, KeyError):
        return False


def _is_of_source(metadata: CaseMetadata, reading: Reading, case: Case) -> bool:
    """Return whether a case was read in this way, and prepared from its present source."""
    same_spacing = reading.spacing == "ready" or metadata["resampled_to"] == reading.resampled_to
    same_labels = metadata["labels"] == reading.labels.plain()
    same_reading = same_spacing and same_labels and metadata["background"] == reading.background
    return same_reading and _same_source(metadata["source"], case)


def source_of(case: Case) -> list[list[Any]]:
    """Return name, size, modification time, change time and CRC32 of each file of a case."""
    return [[path.name, *_size_and_times(path), _crc32(path)] for path in case.files]


def checksums(path: Path) -> dict[str, FileInfo]:
    """Return size and CRC32 of each array of a prepared case. path: its folder."""
    contents = {file: (path / file).read_bytes() for file in ARRAYS}
    return {file: {"size": len(content), "crc32": isal_zlib.crc32(content)} for file, content in contents.items()}


def _same_source(source: list[list[Any]], case: Case) -> bool:
    """Return whether the files of a case are those of which source_of has returned this."""
    paths = case.files
    return len(source) == len(paths) and all(map(_same_file, source, paths))


def _same_file(file: list[Any], path: Path) -> bool:
    """Return whether a file has the name, size and modification time that source_of has returned, and the same content.

    Any write changes the change time, which no program can set; a copy or a new mode does too, so then the content is
    read. A cache of an older version has neither the change time nor the CRC32.
    """
    name, size, modified, *rest = file
    now_size, now_modified, now_changed = _size_and_times(path)
    if [name, size, modified] != [path.name, now_size, now_modified]:
        return False
    return not rest or rest[0] == now_changed or bool(rest[1] == _crc32(path))


def _size_and_times(path: Path) -> tuple[int, int, int]:
    """Return size in bytes, modification time and change time, both in ns, of a file."""
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def _crc32(path: Path) -> int:
    """Return the CRC32 of a file's bytes."""
    value = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            value = isal_zlib.crc32(chunk, value)
    return value
