"""Cases whose files are changed after they were written."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform

from trainable.cases.case_files import Case, find_case

Change = Callable[[Any, Any], tuple[Any, Any]]  # voxels and affine of a file -> those that it gets


def case_of(folder: Path) -> Case:
    """The labelled case in a folder."""
    return find_case(folder, need_seg=True)


def change_files(folder: Path, change: Change, words: str = "*") -> None:
    """Write the files of a case again; words: which of them, such as t1 or seg."""
    paths = sorted(folder.glob(f"*_{words}.nii.gz"))
    assert paths
    for path in paths:
        image = nib.load(path)
        voxels, affine = change(np.asanyarray(image.dataobj), image.affine.copy())
        nib.save(nib.Nifti1Image(voxels, affine), path)


def change_images(folder: Path, change: Callable[[Any], Any]) -> None:
    """Write the four images of a case again."""
    for word in ("flair", "t1", "t1ce", "t2"):
        change_files(folder, lambda voxels, affine: (change(voxels), affine), word)


def turned(codes: str) -> Change:
    """A change of the axes to those of `codes`, such as PIR, in which each voxel stays at its place in the head."""

    def change(voxels: Any, affine: Any) -> tuple[Any, Any]:
        transform = ornt_transform(io_orientation(affine), axcodes2ornt(codes))
        return apply_orientation(voxels, transform), affine @ inv_ornt_aff(transform, voxels.shape)

    return change


def sized(factors: Any) -> Change:
    """A change of the voxel size along each axis, with the same voxels."""
    return lambda voxels, affine: (voxels, affine @ np.diag([*np.broadcast_to(factors, 3), 1.0]))


def patch_header(path: Path, offset: int, content: bytes) -> None:
    """Overwrite bytes of the header of a compressed NIfTI file."""
    data = bytearray(gzip.decompress(path.read_bytes()))
    data[offset : offset + len(content)] = content
    path.write_bytes(gzip.compress(bytes(data), 1))
