"""Resample a case to another voxel size, and labels back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from nibabel.affines import voxel_sizes
from numpy.typing import NDArray
from scipy import ndimage

from trainable.cases.case_reader import LoadedCase
from trainable.cases.grid import Spacing, three
from trainable.core.brats import Labels, labels_to_regions
from trainable.core.config import Shape3


def resample_case(case: LoadedCase, spacing: Spacing) -> LoadedCase:
    """Return a case with voxels of about this size in mm: the volume stays the same, each axis has a whole number.

    Images by cubic splines, rounded and kept within their own range, with a background of exactly 0; labels as
    resample_label does.
    """
    old = case.image.shape[1:]
    shape = three(
        [max(1, round(n * own / new)) for n, own, new in zip(old, voxel_sizes(case.affine), spacing, strict=True)]
    )
    scale = np.divide(old, shape)  # voxels of the old grid per voxel of the new one
    affine = case.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ ((scale - 1) / 2)  # the outer faces stay, not the first voxel's centre
    affine[:3, :3] *= scale
    image = np.stack([_resample_image(channel, shape) for channel in case.image])
    label = None if case.label is None else resample_label(case.label, shape)
    return replace(case, image=image, label=label, affine=affine)


def _resample_image(image: NDArray[np.int16], shape: Shape3) -> NDArray[np.int16]:
    """Return an image (X, Y, Z) in another shape: cubic splines inside, 0 where the nearest voxel is 0."""
    inside = _zoom((image != 0).astype(np.uint8), shape, order=0) != 0
    values = np.clip(np.rint(_zoom(image.astype(np.float32), shape, order=3)), image.min(), image.max())
    return np.where(inside, values, 0).astype(np.int16)


def resample_label(label: Labels, shape: Shape3) -> Labels:
    """Return labels 0, 1, 2, 4, uint8 (X, Y, Z), in another shape: each region linearly, then where it is half or more.

    By region and not by label, since the regions are nested: between ET and what is around it lies TC, never a label
    that is near neither. Linear values move a border by parts of a voxel, which the nearest voxel cannot.
    """
    wt, tc, et = (_zoom_mask(region, shape) for region in labels_to_regions(label))
    return np.select([et, tc, wt], [np.uint8(4), np.uint8(1), np.uint8(2)], np.uint8(0))


def _zoom_mask(mask: NDArray[np.bool_], shape: Shape3) -> NDArray[np.bool_]:
    """Return a mask in another shape. Where it is exactly half, the nearest voxel decides: else it would grow."""
    values = mask.astype(np.float32)
    return np.asarray(0.999 * _zoom(values, shape, order=1) + 0.001 * _zoom(values, shape, order=0) >= 0.5)


def _zoom(voxels: NDArray[Any], shape: Sequence[int], *, order: Literal[0, 1, 3]) -> NDArray[Any]:
    """Return a volume in another shape over the same space, by splines of this order."""
    factors = np.divide(shape, voxels.shape)
    return np.asarray(ndimage.zoom(voxels, factors, order=order, mode="nearest", grid_mode=True))
