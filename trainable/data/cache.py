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
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from trainable.core.config import Shape3
from trainable.core.errors import InputError

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

    source: name, size and modification time of each file of the case. scan: the scan_hash of its images.
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
        full_shape: (D, H, W) of the full volume.
        affine: float64 (4, 4) of the full volume, in mm.
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
    content: str = ""


def cache_folder(data_dir: Path, cache_dir: Path | None) -> Path:
    """Return the folder for the cache of a data folder; neither folder need exist, and none is made.

    That is cache_dir if given; else DATA.cache next to the data folder, if files can be written there; else a folder in
    ~/.cache/voxtune (or $XDG_CACHE_HOME/voxtune) whose name depends on the path of the data folder.
    """
    if cache_dir is not None:
        return Path(cache_dir)
    data_dir = Path(os.path.abspath(data_dir))
    sibling = data_dir.parent / (data_dir.name + ".cache")
    # Tried by writing a file: os.access is wrong for network folders and for root.
    with contextlib.suppress(OSError), tempfile.TemporaryFile(dir=sibling if sibling.exists() else sibling.parent):
        return sibling
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    digest = hashlib.sha256(str(data_dir.resolve()).encode()).hexdigest()[:8]
    return base / "voxtune" / f"{data_dir.name}-{digest}"


def open_case(folder: Path, name: str) -> CachedCase:
    """Open a prepared case: read its case.json and foreground, and map image and label into memory.

    The sizes of the files are checked, their checksums are not.

    Raises:
        CacheError: if the case is missing, not whole, or of another version of the cache.
    """
    path = Path(folder) / name
    metadata = read_metadata(path)
    try:
        if any((path / file).stat().st_size != metadata["files"][file]["size"] for file in ARRAYS):
            raise ValueError("the size of a file is not that in case.json")
        image, label = (np.load(path / file, mmap_mode="r") for file in ARRAYS[:2])
        voxels = np.split(np.load(path / ARRAYS[2]), np.cumsum(metadata["foreground"])[:-1])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CacheError(f"{path}: not a whole prepared case ({error}); run prepare again") from None
    return CachedCase(
        name=name,
        image=image,
        label=label,
        foreground=(voxels[0], voxels[1], voxels[2]),
        mean=np.array(metadata["mean"], np.float32),
        std=np.array(metadata["std"], np.float32),
        offset=_three(metadata["offset"]),
        full_shape=_three(metadata["full_shape"]),
        affine=np.array(metadata["affine"], np.float64),
        content=content_of(metadata),
    )


def _three(sizes: Sequence[int]) -> Shape3:
    """Return three numbers as a tuple."""
    depth, height, width = sizes
    return depth, height, width


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
        raise CacheError(f"cases have changed since the training began: {changed}; restore them, or begin anew")


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
        raise CacheError(f"{path}: not a whole prepared case ({error}); run prepare again") from None
    return metadata
