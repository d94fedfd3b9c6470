"""The cache: each case preprocessed once into memory-mapped arrays that all trials share.

    FOLDER/<case>/image.npy       int16 (4, D, H, W), cropped to the brain
    FOLDER/<case>/label.npy       uint8 (D, H, W)
    FOLDER/<case>/foreground.npy  int16 (n, 3), some voxels of WT, then of TC, then of ET
    FOLDER/<case>/case.json       all else, and size and CRC32 of these files

cache_writer.py writes them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from trainable.cases.grid import FileGrid, Spacing, three
from trainable.cases.labels import LabelConvention, PlainConvention, from_plain
from trainable.core.config import Shape3
from trainable.core.errors import InputError
from trainable.core.files import OPEN_FILES_ADVICE, OPEN_FILES_ERRNOS
from trainable.core.storage import Uri

VERSION = 2
ARRAYS = ("image.npy", "label.npy", "foreground.npy")
METADATA = "case.json"


class CacheError(InputError):
    """A prepared case is missing, not whole, of another version, or not what it was."""


class FileInfo(TypedDict):
    """Size in bytes and CRC32 of a file."""

    size: int
    crc32: int


class CaseMetadata(TypedDict):
    """The content of case.json; see CachedCase.

    source: name, size, times and CRC32 of each file of the case, see source_of. scan: the scan_hash of its images.
    labels: the convention by which its seg was read.
    """

    version: int
    offset: list[int]
    full_shape: list[int]
    mean: list[float]
    std: list[float]
    foreground: list[int]  # number of voxels of each region in foreground.npy
    files: dict[str, FileInfo]
    source: list[list[Any]]
    affine: list[list[float]]
    labels: PlainConvention
    et_value: int | None
    file_shape: list[int]
    file_affine: list[list[float]]
    file_spacing: list[float]  # in mm, of the axes in LPS
    resampled_to: list[float] | None  # the voxel size asked for, in mm; None if the voxels are those of the files
    background: float | str  # the option with which the case was read
    notes: list[str]  # what was changed in its images, and what looks wrong
    scan: str


@dataclass(frozen=True)
class CachedCase:
    """One prepared case; image and label stay on disk until they are read.

    Attributes:
        image: int16 (4, D, H, W), cropped to the brain.
        label: uint8 (D, H, W) of 0, 1, 2, 4.
        foreground: for WT, TC and ET the coordinates in the crop of at most 4096 voxels of the region, int16 (n, 3).
        mean, std: float32 (4,), over each channel's non-zero voxels.
        offset: corner of the crop in the full volume, in voxels.
        full_shape: (D, H, W) of the full volume, in LPS and resampled if the case was.
        affine: float64 (4, 4) of the full volume, in mm.
        et_value: value of ET in the seg's file; None if the case has no ET.
        file_grid: the grid of the case's files.
        content: hash of images and label, see content_of.
    """

    name: str
    image: np.memmap[Any, np.dtype[np.int16]]
    label: np.memmap[Any, np.dtype[np.uint8]]
    foreground: tuple[NDArray[np.int16], NDArray[np.int16], NDArray[np.int16]]
    mean: NDArray[np.float32]
    std: NDArray[np.float32]
    offset: Shape3
    full_shape: Shape3
    affine: NDArray[np.float64]
    et_value: int | None
    file_grid: FileGrid
    content: str = ""


def cache_folder(data_dir: Path | Uri, cache_dir: Path | None) -> Path:
    """Return the folder for the cache of a data folder; neither folder need exist, and none is made.

    That is cache_dir if given; else DATA.cache next to the data folder, if files can be written there; else, and for
    cases at a URI, a folder in ~/.cache/voxtune (or $XDG_CACHE_HOME/voxtune) whose name depends on the path or URI.

    Raises:
        InputError: if none of these can be, as the user has no home folder.
    """
    if cache_dir is not None:
        return Path(cache_dir)
    if isinstance(data_dir, Uri):
        place, name = str(data_dir), PurePosixPath(data_dir.partition("?")[0]).name
        why = "cases at a URI have none next to them"
    else:
        sibling = sibling_cache(data_dir)
        if can_be_written(sibling):
            return sibling
        data_dir = Path(os.path.abspath(data_dir))
        place, name, why = str(data_dir.resolve()), data_dir.name, f"{sibling} cannot be written"
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # HOME is unset and the user has no entry in passwd, as in a container
        raise InputError(
            f"no place for the cache: {why}, and this user has no home folder; "
            "give a cache_dir (--cache_dir DIR; for a sweep --set train.cache_dir=DIR), or set HOME"
        ) from None
    digest = hashlib.sha256(place.encode()).hexdigest()[:8]
    return base / "voxtune" / f"{name}-{digest}"


def sibling_cache(data_dir: Path) -> Path:
    """Return the path of DATA.cache next to a data folder."""
    data_dir = Path(os.path.abspath(data_dir))
    return data_dir.parent / (data_dir.name + ".cache")


def can_be_written(folder: Path) -> bool:
    """Return whether files can be written in a folder, or if it does not exist in the one above it."""
    # Tried by writing a file: os.access is wrong for network folders and for root.
    with contextlib.suppress(OSError), tempfile.TemporaryFile(dir=folder if folder.exists() else folder.parent):
        return True
    return False


def open_case(folder: Path, name: str) -> CachedCase:
    """Open a prepared case: read its case.json and foreground, and map image and label into memory.

    The sizes of the files are checked, their checksums are not. Image and label keep one open file each.

    Raises:
        CacheError: if the case is missing, not whole, or of another version of the cache.
        InputError: if too many files are open.
    """
    path = Path(folder) / name
    metadata = read_metadata(path)
    try:
        if any((path / file).stat().st_size != metadata["files"][file]["size"] for file in ARRAYS):
            raise ValueError("the size of a file is not that in case.json")
        image, label = (np.load(path / file, mmap_mode="r") for file in ARRAYS[:2])
        voxels = np.split(np.load(path / ARRAYS[2]), np.cumsum(metadata["foreground"])[:-1])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise unusable_case(path, error) from None
    return CachedCase(
        name=name,
        image=image,
        label=label,
        foreground=(voxels[0], voxels[1], voxels[2]),
        mean=np.array(metadata["mean"], np.float32),
        std=np.array(metadata["std"], np.float32),
        offset=three(metadata["offset"]),
        full_shape=three(metadata["full_shape"]),
        affine=np.array(metadata["affine"], np.float64),
        et_value=metadata["et_value"],
        file_grid=FileGrid(three(metadata["file_shape"]), np.array(metadata["file_affine"], np.float64)),
        content=content_of(metadata),
    )


def data_digest(folder: Path, names: Sequence[str]) -> str:
    """Return 12 hex digits that differ if the cases' names or prepared contents do; the order of names does not matter.

    Raises:
        CacheError: if a case is not prepared, see `read_metadata`.
    """
    digest = hashlib.sha256()
    for name in sorted(names):
        files = read_metadata(Path(folder) / name)["files"]
        digest.update(json.dumps([name, [files[file]["crc32"] for file in ARRAYS]]).encode())
    return digest.hexdigest()[:12]


def read_labels_in_use(folder: Path, names: Sequence[str]) -> LabelConvention:
    """Return the convention of prepared cases, at least one; of its variants the one that all of them with ET have.

    Raises:
        InputError: if a case is not prepared, see `read_metadata`.
    """
    cases = [read_metadata(Path(folder) / name) for name in names]
    labels = from_plain(cases[0]["labels"])
    values = {case["et_value"] for case in cases} - {None}
    return labels.with_et(values.pop()) if len(values) == 1 else labels


def grid_spacing(folder: Path, train: Sequence[str], others: Sequence[str] = ()) -> Spacing:
    """Return the voxel size in mm, of the axes in LPS, that prepared cases are compared with and resampled to.

    That is the one that cases were resampled to, if any was; else the median of the training cases' files on each axis.

    Raises:
        InputError: if a case is not prepared, see `read_metadata`.
    """
    metadata = {name: read_metadata(Path(folder) / name) for name in (*train, *others)}
    resampled = [case["resampled_to"] for case in metadata.values() if case["resampled_to"]]
    return three(resampled[0]) if resampled else median_spacing([metadata[name] for name in train])


def median_spacing(cases: Sequence[CaseMetadata]) -> Spacing:
    """Return the median voxel size of cases' files in mm, of each axis in LPS, rounded to 0.0001 mm."""
    return three(np.round(np.median([case["file_spacing"] for case in cases], axis=0), 4).tolist())


def content_of(metadata: CaseMetadata) -> str:
    """Return a hash of a case's images and label: its scan_hash, a hyphen, and 8 hex digits of the label."""
    return f"{metadata['scan']}-{metadata['files'][ARRAYS[1]]['crc32']:08x}"


def scan_of(content: str) -> str:
    """Return the scan_hash in what content_of has returned."""
    return content.partition("-")[0]


def read_contents(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Return content_of each of these prepared cases, by name.

    Raises:
        CacheError: if a case is not prepared, see `read_metadata`.
    """
    return {name: content_of(read_metadata(Path(folder) / name)) for name in names}


def changed_cases(now: Mapping[str, str], begun: Mapping[str, str]) -> str:
    """Return the cases whose content differs, as text: "NAME (label), NAME (images) and 3 more"; "" if none does.

    Args:
        now, begun: content_of cases by name, now and when something began; only cases that are in both are compared.
    """
    changed = [name for name, content in now.items() if begun.get(name, content) != content]
    shown = []
    for name in changed[:5]:
        shown.append(f"{name} ({'label' if scan_of(now[name]) == scan_of(begun[name]) else 'images'})")
    return ", ".join(shown) + (f" and {len(changed) - 5} more" if len(changed) > 5 else "")


def require_same(now: Mapping[str, str], begun: Mapping[str, str]) -> None:
    """Raise CacheError, which names the cases, if a case has changed since a training began, see changed_cases."""
    if changed := changed_cases(now, begun):
        raise CacheError(f"cases have changed since the training began: {changed}; restore them, or start again")


def read_metadata(path: Path) -> CaseMetadata:
    """Return the content of case.json in `path`, the folder of a prepared case.

    Raises:
        CacheError: if case.json is missing, damaged or of another version of the cache.
    """
    try:
        metadata: CaseMetadata = json.loads((path / METADATA).read_text())
        if metadata["version"] != VERSION:
            raise ValueError(f"version {metadata['version']} instead of {VERSION}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise unusable_case(path, error) from None
    return metadata


def unusable_case(path: Path, error: Exception) -> InputError:
    """Return the error of a prepared case that cannot be read. path: its folder. error: why."""
    if isinstance(error, OSError) and error.errno in OPEN_FILES_ERRNOS:
        return InputError(f"{path}: cannot be opened: {OPEN_FILES_ADVICE}")
    return CacheError(f"{path}: not a whole prepared case ({error}); run prepare again")
