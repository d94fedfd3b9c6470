"""Turn the axes of a volume: from those of its file to LPS, in which all cases are trained, and back."""

from __future__ import annotations

from typing import Any

import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.orientations import (
    apply_orientation,
    axcodes2ornt,
    inv_ornt_aff,
    io_orientation,
    ornt_transform,
)
from numpy.typing import NDArray

from trainable.cases.grid import ORIENTATION, FileGrid, Spacing, three
from trainable.core.config import Shape3

UNTURNED = [[0, 1], [1, 1], [2, 1]]


def to_lps(voxels: NDArray[Any], affine: NDArray[np.float64]) -> NDArray[Any]:
    """Return a view of a file's voxels (X, Y, Z) whose axes are those closest to left, back and top.

    An oblique volume is not resampled: its axes are permuted and flipped only.

    Args:
        affine: of the file, one that `usable_affine` has accepted.
    """
    return np.asarray(apply_orientation(voxels, _transform(affine)))


def from_lps(voxels: NDArray[Any], grid: FileGrid) -> NDArray[Any]:
    """Return a view of voxels in LPS, of the size of a file's grid, in the axes of that grid: undoes `to_lps`."""
    wanted = io_orientation(grid.affine)
    return np.asarray(apply_orientation(voxels, ornt_transform(axcodes2ornt(ORIENTATION), wanted)))


def lps_shape(grid: FileGrid) -> Shape3:
    """Return the shape of a file's voxels after `to_lps`."""
    return three(np.array(grid.shape)[_order(grid.affine)].tolist())


def lps_affine(grid: FileGrid) -> NDArray[np.float64]:
    """Return the affine of a file's voxels after `to_lps`; that of a file in LPS is returned as it is."""
    transform = _transform(grid.affine)
    if np.array_equal(transform, UNTURNED):
        return grid.affine
    return np.asarray(grid.affine @ inv_ornt_aff(transform, grid.shape), np.float64)


def lps_spacing(affine: NDArray[np.float64]) -> Spacing:
    """Return the voxel size in mm of a file's voxels after `to_lps`, given the file's affine."""
    return three(voxel_sizes(affine)[_order(affine)].tolist())


def _transform(affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return what turns a file's axes to LPS, as nibabel writes it: the new place of each axis, and its sign."""
    return np.asarray(ornt_transform(io_orientation(affine), axcodes2ornt(ORIENTATION)))


def _order(affine: NDArray[np.float64]) -> NDArray[np.intp]:
    """Return the axes of a file in the order in which `to_lps` puts them."""
    return np.argsort(_transform(affine)[:, 0])
