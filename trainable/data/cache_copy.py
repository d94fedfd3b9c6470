"""Copy prepared cases from another cache: that of a shared disk into one on a local disk."""

from __future__ import annotations

import contextlib
from pathlib import Path

from trainable.cases.case_files import Case
from trainable.core.errors import InputError
from trainable.data.cache import ARRAYS, METADATA
from trainable.data.cache_check import Reading, is_of_source, is_whole
from trainable.data.cache_publish import publish, unfinished_folder


def copy_case(folder: Path, other: Path, reading: Reading, case: Case) -> bool:
    """Copy a case that another cache has as its files are now; return False if it has not, or is damaged.

    The copy is verified by the sizes and checksums that its case.json has.

    Args:
        folder: the cache to copy into.
        other: the cache to copy from.
        reading: how the case is to be read.

    Raises:
        OSError: if `folder` cannot be written.
    """
    if not is_of_source(other, reading, case):
        return False
    with unfinished_folder(folder) as temp:
        contents = {}
        with contextlib.suppress(OSError):  # of the other cache: the case is then prepared from its files
            contents = {file: (other / case.name / file).read_bytes() for file in (*ARRAYS, METADATA)}
        for file, content in contents.items():
            (temp / file).write_bytes(content)
        if not is_whole(temp, reading, case):
            return False
        with contextlib.suppress(InputError):  # other processes write it too
            publish(temp, folder, reading, case)
    return True


def cache_to_copy_from(folder: Path, other: Path) -> Path | None:
    """Return another cache if there is one, and it is not the same folder; else None."""
    return other if other.is_dir() and other.resolve() != folder.resolve() else None
