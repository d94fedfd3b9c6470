"""Write the cache: preprocess each case once, or copy it from another cache that has it (cache_copy.py)."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainable.cases.case_files import Case, CaseError
from trainable.cases.case_reader import LoadedCase, load_case
from trainable.cases.folder_listing import is_nifti
from trainable.cases.orientation import lps_spacing
from trainable.cases.resample import resample_case
from trainable.core.brats import REGION_LABELS
from trainable.core.errors import InputError
from trainable.core.files import FULL_DISK_ERRNOS
from trainable.core.locks import one_at_a_time
from trainable.core.parallel import cores, run_parallel
from trainable.core.progress_bar import progress_bar
from trainable.data.cache import (
    ARRAYS,
    METADATA,
    VERSION,
    CaseMetadata,
    cache_folder,
    can_be_written,
    read_metadata,
    sibling_cache,
)
from trainable.data.cache_check import PLAIN_READING, Reading, checksums, is_current, is_of_source, source_of
from trainable.data.cache_copy import cache_to_copy_from, copy_case
from trainable.data.cache_publish import publish, remove_leftovers, unfinished_folder
from trainable.data.normalise import brain_box, channel_stats
from trainable.data.scan_hash import scan_hash

FOREGROUND_LIMIT = 4096
THREADS_UP_TO = 8  # cases per worker; up to this many threads are used: processes scale better but start in seconds
NOTES_SHOWN = 20
NAME_ERRNOS = (errno.ENAMETOOLONG, errno.EILSEQ)


def prepare(
    cases: Sequence[Case],
    folder: Path,
    *,
    reading: Reading = PLAIN_READING,
    incomplete: Sequence[CaseError] = (),
    skip_bad: bool = False,
    remedy: str = "repair them, or continue without them with --skip_bad_cases",
    copy_from: Path | None = None,
    workers: int = 0,
    quiet: bool = False,
) -> tuple[list[str], list[CaseError]]:
    """Bring the cache of these cases up to date; return the names of the good cases, sorted, and the bad cases' errors.

    A cached case is verified by size, checksum, source and labels, and prepared again if it differs. Several processes
    that call this at once for one cache on a local disk do so one after the other, so that each case is prepared once.

    Args:
        folder: the cache; made if missing.
        reading: how they are read; a case that was prepared otherwise is prepared again.
        incomplete: errors of find_cases; they are listed and returned as bad cases too.
        skip_bad: continue without bad cases.
        remedy: what to do about bad cases, for the message.
        copy_from: another cache, from which cases are copied rather than prepared; it need not exist.
        workers: number of processes or threads; 0 for one per core.
        quiet: print nothing on stderr, neither the progress nor what was prepared and left out.

    Raises:
        InputError: for bad cases (unless skip_bad), or if no good case is left; all are listed, and the good ones stay
            in the cache. Also for a killed worker, and for a folder that cannot be written or has cases as NIfTI.
    """
    start = time.monotonic()
    folder = Path(folder)
    cases = sorted(cases, key=lambda case: case.name)
    _refuse_foreign_folders(cases, folder)
    try:
        copied, outcomes = _update(cases, folder, copy_from, reading, workers, quiet)
    except OSError as error:
        room = "free some space, or " if error.errno in FULL_DISK_ERRNOS else ""
        raise InputError(
            f"{folder}: the cache cannot be written ({error}); {room}choose a cache_dir that can be"
        ) from None
    errors = [*incomplete, *(error for error in outcomes.values() if error is not None)]
    if not quiet:
        summary = f"prepared {list(outcomes.values()).count(None)} cases in {time.monotonic() - start:.1f} s"
        if copied:
            summary += f", copied {copied} from {copy_from}"
        print(f"{summary}, {len(cases) - len(outcomes) - copied} were ready: {folder}", file=sys.stderr)
        _print_notes(folder, [name for name, error in outcomes.items() if error is None])
    good = [case.name for case in cases if outcomes.get(case.name) is None]
    message = f"{len(errors)} of {len(cases) + len(incomplete)} cases cannot be used"
    listing = "".join(f"\n  {error}" for error in errors)
    if not good:
        with contextlib.suppress(OSError):  # it is not empty
            folder.rmdir()
    if not good or (errors and not skip_bad):
        raise InputError(f"{message}; {remedy if good else 'no case is left'}:{listing}")
    if errors and not quiet:
        print(f"{message} and are left out:{listing}", file=sys.stderr)
    return good, errors


def _refuse_foreign_folders(cases: Sequence[Case], folder: Path) -> None:
    """Raise InputError if a folder of a case's name is no prepared case, since a prepared case would replace it."""
    for case in cases:
        if other := _foreign_file(folder / case.name):
            what = "cases as NIfTI files" if is_nifti(other) else "folders that are no prepared cases"
            raise InputError(f"{folder} contains {what}, such as {case.name}; choose another cache_dir")


def _print_notes(folder: Path, names: Sequence[str]) -> None:
    """Print on stderr what was changed in the images of these cases, and what looks wrong."""
    notes = [note for name in names for note in read_metadata(folder / name)["notes"]]
    for note in notes[:NOTES_SHOWN]:
        print(note, file=sys.stderr)
    if len(notes) > NOTES_SHOWN:
        print(f"... and {len(notes) - NOTES_SHOWN} more; see notes in {folder}/*/{METADATA}", file=sys.stderr)


def place_of_cache(cases: Sequence[Case], reading: Reading, data_dir: Path, cache_dir: Path | None) -> Path:
    """Return `cache_folder`, or DATA.cache if it cannot be written but has all these cases: one on a read-only mount.

    reading: how the cases are read.

    Raises:
        InputError: as cache_folder.
    """
    sibling = sibling_cache(data_dir)
    if (
        cache_dir is None
        and not can_be_written(sibling)
        and all(is_of_source(sibling, reading, case) for case in cases)
    ):
        return sibling
    return cache_folder(data_dir, cache_dir)


def _update(
    cases: Sequence[Case], folder: Path, copy_from: Path | None, reading: Reading, workers: int, quiet: bool
) -> tuple[int, dict[str, CaseError | None]]:
    """Prepare or copy the cases that are not cached or have changed.

    Returns:
        How many were copied; and of the others by name the error, None for a good one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder)
    other = copy_from and cache_to_copy_from(folder, copy_from)
    with progress_bar("cases", len(cases), quiet=quiet) as tick:
        outdated = _outdated(cases, folder, reading, workers, tick)
        if not outdated:
            return 0, {}
        with one_at_a_time(folder, "prepares cases in"):
            outdated = _outdated(outdated, folder, reading, workers)  # another process may have prepared them
            left = outdated
            if other is not None:
                copy = partial(copy_case, folder, other, reading)
                copied = run_parallel(copy, outdated, workers=workers, tick=tick, threads=True)
                left = [case for case, done in zip(outdated, copied, strict=True) if not done]
                tick(-len(left))
            few = len(left) <= THREADS_UP_TO * (workers or cores())
            errors = run_parallel(
                partial(_prepare_case, folder, reading), left, workers=workers, tick=tick, threads=few
            )
    return len(outdated) - len(left), {case.name: error for case, error in zip(left, errors, strict=True)}


def _outdated(
    cases: Sequence[Case], folder: Path, reading: Reading, workers: int, tick: Callable[..., None] = lambda *_: None
) -> list[Case]:
    """Return the cases that the cache lacks or that have changed. tick: called by each case that is ready."""
    current = run_parallel(partial(is_current, folder, reading), cases, workers=workers, tick=tick, threads=True)
    outdated = [case for case, ready in zip(cases, current, strict=True) if not ready]
    tick(-len(outdated))
    return outdated


def _foreign_file(folder: Path) -> str:
    """Return the name of a file in a folder that no prepared case has, a NIfTI file if there is one; "" if none."""
    try:
        names = [name for name in os.listdir(folder) if not name.startswith(".")]
    except OSError:
        return ""
    if nifti := next(filter(is_nifti, names), ""):
        return nifti
    return "" if METADATA in names else next((name for name in names if name not in ARRAYS), "")


def _prepare_case(folder: Path, reading: Reading, case: Case) -> CaseError | None:
    """Prepare one case; return its error, or None if it is good."""
    if case.seg is None:
        return CaseError(
            f"{case.name}: has no seg; expected one next to {case.images[0]}, as only labelled cases train"
        )
    try:
        # It is described first: a source that changes while it is read is then prepared again next time.
        source = source_of(case)
        loaded = load_case(case, reading.labels, reading.background)
        scan = scan_hash(loaded.image)  # of the scan itself, not of a resampled one
        if not isinstance(reading.spacing, str):
            loaded = resample_case(loaded, reading.spacing)
        with unfinished_folder(folder) as temp:
            _write(temp, case.name, loaded, source, scan, reading)
            publish(temp, folder, reading, case)
    except CaseError as error:
        return error
    except FileNotFoundError as error:
        return CaseError(f"{case.name}: {error.filename} vanished while it was read; expected it to stay")
    except OSError as error:
        if error.errno not in NAME_ERRNOS:
            raise
        return CaseError(
            f"{case.name}: {folder} cannot have a folder of this name ({error.strerror}); shorten the name"
        )
    return None


def _write(temp: Path, name: str, case: LoadedCase, source: list[list[Any]], scan: str, reading: Reading) -> None:
    """Write the files of a labelled case."""
    image, label = case.image, case.label
    assert label is not None
    box = brain_box(image, label)
    crop, inside = np.ascontiguousarray(image[:, *box]), np.ascontiguousarray(label[box])
    voxels = _foreground(inside, name)
    arrays: list[NDArray[Any]] = [crop, inside, np.concatenate(voxels)]
    for file, array in zip(ARRAYS, arrays, strict=True):
        _save_array(temp / file, array)
    mean, std = channel_stats(crop)
    metadata: CaseMetadata = {
        "version": VERSION,
        "offset": [side.start for side in box],
        "full_shape": list(label.shape),
        "mean": mean.tolist(),
        "std": std.tolist(),
        "foreground": [len(region) for region in voxels],
        "files": checksums(temp),
        "source": source,
        "affine": case.affine.tolist(),
        "labels": reading.labels.plain(),
        "et_value": case.et_value,
        "file_shape": list(case.file_grid.shape),
        "file_affine": case.file_grid.affine.tolist(),
        "file_spacing": list(lps_spacing(case.file_grid.affine)),
        "resampled_to": reading.resampled_to,
        "background": reading.background,
        "notes": list(case.notes),
        "scan": scan,
    }
    (temp / METADATA).write_text(json.dumps(metadata))


def _save_array(path: Path, array: NDArray[Any]) -> None:
    """Write an array as .npy; an OSError names the file and its cause."""
    try:
        np.save(path, array, allow_pickle=False)
    except OSError as error:
        if error.errno is not None:
            raise
        # numpy says only how many values it has written
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from None


def _foreground(label: NDArray[np.uint8], name: str) -> list[NDArray[np.int16]]:
    """Return at most FOREGROUND_LIMIT voxels (n, 3) of each region, drawn by a seed made from the case's name."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    drawn = []
    for labels in REGION_LABELS.values():
        flat = np.flatnonzero(np.isin(label, labels))
        if len(flat) > FOREGROUND_LIMIT:
            flat = np.sort(rng.choice(flat, FOREGROUND_LIMIT, replace=False))
        drawn.append(np.stack(np.unravel_index(flat, label.shape), axis=1).astype(np.int16))
    return drawn
