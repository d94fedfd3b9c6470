"""Preprocess each case once into memory-mapped arrays that all trials share.

    FOLDER/<case>/image.npy       int16 (4, D, H, W), cropped to the brain
    FOLDER/<case>/label.npy       uint8 (D, H, W)
    FOLDER/<case>/foreground.npy  int16 (n, 3), voxels of WT, then TC, then ET
    FOLDER/<case>/case.json       all else, and size and CRC32 of these files

A case's folder appears by one rename of a finished one, so it is whole or not there.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
import sys
import tempfile
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

from trainable.core.brats import REGION_LABELS
from trainable.core.errors import InputError
from trainable.core.files import fsync_path, process_exists
from trainable.core.workers import cores, progress_bar, run_parallel
from trainable.data.cases import Case, CaseError, load_case

VERSION = 1
FOREGROUND_LIMIT = 4096
THREADS_UP_TO = 8  # cases a worker: processes, which do not wait for each other as threads do, take seconds to start
ARRAYS = ("image.npy", "label.npy", "foreground.npy")
LEFTOVER_AGE = 3600  # seconds; a writer on another machine looks dead from here, but is not that slow


@dataclass(frozen=True)
class CachedCase:
    """One prepared case; its arrays stay on disk until they are read.

    image: int16 (4, D, H, W). label: uint8 (D, H, W) of 0, 1, 2, 4. foreground: for WT, TC and ET int16 (n, 3),
    at most 4096 voxels of the region, in the crop. mean, std: float32 (4,) over each channel's non-zero voxels.
    offset: corner of the crop in the full volume of full_shape. affine: float64 (4, 4) of the full volume, in mm.
    """

    name: str
    image: np.memmap[Any, np.dtype[np.int16]]
    label: np.memmap[Any, np.dtype[np.uint8]]
    foreground: tuple[NDArray[np.int16], NDArray[np.int16], NDArray[np.int16]]
    mean: NDArray[np.float32]
    std: NDArray[np.float32]
    offset: tuple[int, int, int]
    full_shape: tuple[int, int, int]
    affine: NDArray[np.float64]


def brain_box(image: NDArray[Any], label: NDArray[Any] | None = None) -> tuple[slice, slice, slice]:
    """Bounding box of the voxels that are non-zero in any modality of (4, X, Y, Z), or in the label (X, Y, Z)."""
    inside = np.asarray(image.any(axis=0))
    if label is not None:
        inside |= label != 0
    if not inside.any():
        raise ValueError("the volume is 0 everywhere, so it has no box; load_case refuses such cases")
    sides = [np.flatnonzero(inside.any(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1))]
    x, y, z = (slice(int(side[0]), int(side[-1]) + 1) for side in sides)
    return x, y, z


def channel_stats(image: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and deviation float32 (4,) of each channel's non-zero voxels; a deviation of 0 is given as 1."""
    mean, std = np.zeros(len(image)), np.ones(len(image))
    for channel, volume in enumerate(image):
        values = volume[volume != 0].astype(np.float64)
        if values.size:
            mean[channel], std[channel] = values.mean(), values.std() or 1.0
    return mean.astype(np.float32), std.astype(np.float32)


def cache_folder(data_dir: Path, cache_dir: Path | None) -> Path:
    """Where the cache of a data folder goes: cache_dir, else beside the data, else the user's cache folder."""
    if cache_dir is not None:
        return Path(cache_dir)
    data_dir = Path(os.path.abspath(data_dir))
    beside = data_dir.parent / (data_dir.name + ".cache")
    # Tried, not asked: os.access misjudges network folders and what root may do.
    with contextlib.suppress(OSError), tempfile.TemporaryFile(dir=beside if beside.exists() else beside.parent):
        return beside
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    digest = hashlib.sha256(str(data_dir.resolve()).encode()).hexdigest()[:8]
    return base / "voxtune" / f"{data_dir.name}-{digest}"


def prepare(
    cases: Sequence[Case],
    folder: Path,
    *,
    incomplete: Sequence[CaseError] = (),
    skip_bad: bool = False,
    workers: int = 0,
    quiet: bool = False,
) -> tuple[list[str], list[CaseError]]:
    """Bring the cache of these cases up to date; return the good names, sorted, and the bad cases' errors.

    What is there already is verified by size, checksum and source, and redone where it differs.
    incomplete: what find_cases found wrong; listed with the rest. workers: processes or threads, 0 for all cores.
    quiet: say nothing on stderr.
    Errors: InputError for bad cases, all listed (unless skip_bad), no good case, or a folder not writable.
    """
    start = time.monotonic()
    folder = Path(folder)
    cases = sorted(cases, key=lambda case: case.name)
    for case in cases:  # a prepared case takes the place of what has its name
        if any((folder / case.name).glob("*.nii*")):
            raise InputError(f"{folder} holds cases as NIfTI files, such as {case.name}; give a cache_dir of its own")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(folder)
        with progress_bar("cases", len(cases), quiet=quiet) as tick:
            whole = run_parallel(partial(_is_current, folder), cases, workers=workers, tick=tick, threads=True)
            for _ in range(len(cases) - sum(whole)):
                tick(-1)
            todo = [case for case, ready in zip(cases, whole, strict=True) if not ready]
            few = len(todo) <= THREADS_UP_TO * (workers or cores())
            results = run_parallel(partial(_prepare_case, folder), todo, workers=workers, tick=tick, threads=few)
    except OSError as error:
        raise InputError(f"{folder}: the cache cannot be written ({error}); give a cache_dir that can be") from None
    errors = [*incomplete, *(error for error in results if error is not None)]
    if not quiet:
        facts = f"prepared {results.count(None)} cases in {time.monotonic() - start:.1f} s"
        print(f"{facts}, {sum(whole)} were ready: {folder}", file=sys.stderr)
    bad = {case.name for case, error in zip(todo, results, strict=True) if error is not None}
    good = [case.name for case in cases if case.name not in bad]
    said = f"{len(errors)} of {len(cases) + len(incomplete)} cases cannot be used"
    listing = "".join(f"\n  {error}" for error in errors)
    if not good or (errors and not skip_bad):
        advice = "mend them, or go on without them with --skip_bad_cases" if good else "no case is left"
        raise InputError(f"{said}; {advice}:{listing}")
    if errors and not quiet:
        print(f"{said} and are left out:{listing}", file=sys.stderr)
    return good, errors


def open_case(folder: Path, name: str) -> CachedCase:
    """Open a prepared case; reads its JSON and maps its arrays, checking their sizes only.

    Errors: InputError where the case is missing or not whole.
    """
    home = Path(folder) / name
    facts = _read_metadata(home)
    try:
        if any((home / file).stat().st_size != facts["files"][file]["size"] for file in ARRAYS):
            raise ValueError("a file has not the size that case.json states")
        image, label = (np.load(home / file, mmap_mode="r") for file in ARRAYS[:2])
        voxels = np.split(np.load(home / ARRAYS[2]), np.cumsum(facts["foreground"])[:-1])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{home}: not a whole prepared case ({error}); run prepare again") from None
    return CachedCase(
        name=name,
        image=image,
        label=label,
        foreground=(voxels[0], voxels[1], voxels[2]),
        mean=np.array(facts["mean"], np.float32),
        std=np.array(facts["std"], np.float32),
        offset=tuple(facts["offset"]),
        full_shape=tuple(facts["full_shape"]),
        affine=np.array(facts["affine"], np.float64),
    )


def data_digest(folder: Path, names: Sequence[str]) -> str:
    """12 hex digits that differ where the cases' names or prepared contents do."""
    digest = hashlib.sha256()
    for name in sorted(names):
        files = _read_metadata(Path(folder) / name)["files"]
        digest.update(json.dumps([name, [files[file]["crc32"] for file in ARRAYS]]).encode())
    return digest.hexdigest()[:12]


def _read_metadata(home: Path) -> dict[str, Any]:
    """What case.json says, or InputError where it is missing, damaged or of another version."""
    try:
        facts: dict[str, Any] = json.loads((home / "case.json").read_text())
        if facts["version"] != VERSION:
            raise ValueError(f"version {facts['version']} instead of {VERSION}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{home}: not a whole prepared case ({error}); run prepare again") from None
    return facts


def _fingerprint(case: Case) -> list[list[Any]]:
    """What tells that a source has changed: names, sizes and times of its files."""
    paths = [*case.images, *([case.seg] if case.seg else [])]
    return [[path.name, (stat := path.stat()).st_size, stat.st_mtime_ns] for path in paths]


def _checksums(home: Path) -> dict[str, dict[str, int]]:
    contents = {file: (home / file).read_bytes() for file in ARRAYS}
    return {file: {"size": len(content), "crc32": isal_zlib.crc32(content)} for file, content in contents.items()}


def _is_current(folder: Path, case: Case) -> bool:
    """Whether the cache holds this case whole and from its present source."""
    home = folder / case.name
    try:
        facts = _read_metadata(home)
        return bool(facts["source"] == _fingerprint(case) and facts["files"] == _checksums(home))
    except (OSError, ValueError, KeyError):
        return False


def _prepare_case(folder: Path, case: Case) -> CaseError | None:
    """Write one case, or return what is wrong with it."""
    if case.seg is None:
        return CaseError(f"{case.name}: has no seg; expected one beside {case.images[0]}, as only labelled cases train")
    mark = f"{case.name}.{os.getpid()}.{secrets.token_hex(4)}"
    aside = folder / f".{mark}.tmp"
    try:
        # The fingerprint comes first: a source that changes while it is read is then redone next time.
        source = _fingerprint(case)
        loaded = load_case(case)
        aside.mkdir()
        _write(aside, case.name, loaded.image, loaded.label, {"source": source, "affine": loaded.affine.tolist()})
        _publish(aside, folder, case)
    except CaseError as error:
        return error
    except FileNotFoundError as error:
        return CaseError(f"{case.name}: {error.filename} vanished while it was read; expected it to stay")
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return None


def _write(aside: Path, name: str, image: Any, label: Any, facts: dict[str, Any]) -> None:
    """Write a case's files and flush them to disk."""
    box = brain_box(image, label)
    crop, inside = np.ascontiguousarray(image[:, *box]), np.ascontiguousarray(label[box])
    voxels = _foreground(inside, name)
    for file, array in zip(ARRAYS, (crop, inside, np.concatenate(voxels)), strict=True):
        np.save(aside / file, array, allow_pickle=False)
    mean, std = channel_stats(crop)
    facts = {
        "version": VERSION,
        "offset": [side.start for side in box],
        "full_shape": list(label.shape),
        "mean": mean.tolist(),
        "std": std.tolist(),
        "foreground": [len(some) for some in voxels],
        "files": _checksums(aside),
        **facts,
    }
    (aside / "case.json").write_text(json.dumps(facts))
    for file in (*ARRAYS, "case.json", "."):
        fsync_path(aside / file)


def _foreground(label: NDArray[np.uint8], name: str) -> list[NDArray[np.int16]]:
    """At most FOREGROUND_LIMIT voxels (n, 3) of each region, drawn by the case's name alone."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    drawn = []
    for labels in REGION_LABELS.values():
        flat = np.flatnonzero(np.isin(label, labels))
        if len(flat) > FOREGROUND_LIMIT:
            flat = np.sort(rng.choice(flat, FOREGROUND_LIMIT, replace=False))
        drawn.append(np.stack(np.unravel_index(flat, label.shape), axis=1).astype(np.int16))
    return drawn


def _publish(aside: Path, folder: Path, case: Case) -> None:
    """Rename a finished case to its name; another writer may be doing the same."""
    home = folder / case.name
    for _ in range(20):
        if _is_current(folder, case):
            return
        old = aside.with_suffix(".old")
        # Moved, not removed: trials that have the old arrays open keep them.
        with contextlib.suppress(FileNotFoundError):
            home.rename(old)
        try:
            aside.rename(home)
            fsync_path(folder)
            return
        except OSError:  # another writer's folder came between the two renames
            if not home.exists():
                raise
        finally:
            shutil.rmtree(old, ignore_errors=True)
    raise InputError(f"{home}: other processes keep replacing it; let one prepare run at a time")


def _remove_leftovers(folder: Path) -> None:
    """Remove what writers that died long ago left half done."""
    for path in folder.glob(".*.*.*"):
        match = re.fullmatch(r"\..+\.(\d+)\.[0-9a-f]{8}\.(tmp|old)", path.name)
        with contextlib.suppress(OSError):
            if match and time.time() - path.stat().st_mtime > LEFTOVER_AGE and not process_exists(int(match[1])):
                shutil.rmtree(path, ignore_errors=True)
