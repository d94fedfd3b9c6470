"""Crop a volume to the brain and normalise its intensities."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # the processes that write the cache do not need torch, which takes seconds to import
    from torch import Tensor


def brain_box(image: NDArray[Any], label: NDArray[Any] | None = None) -> tuple[slice, slice, slice]:
    """Return the box around the voxels that are non-zero in any modality (4, X, Y, Z), or in the label (X, Y, Z).

    Raises:
        ValueError: if all voxels are 0.
    """
    inside = np.asarray(image.any(axis=0))
    if label is not None:
        inside |= label != 0
    if not inside.any():
        raise ValueError("the volume is 0 everywhere, so it has no box; load_case refuses such cases")
    sides = [np.flatnonzero(inside.any(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1))]
    x, y, z = (slice(int(side[0]), int(side[-1]) + 1) for side in sides)
    return x, y, z


def channel_stats(image: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return mean and standard deviation, each float32 (4,), of the non-zero voxels of each channel of (4, ...).

    A deviation of 0 becomes 1. A channel without such voxels has mean 0 and deviation 1.
    """
    mean, std = np.zeros(len(image)), np.ones(len(image))
    for channel, volume in enumerate(image):
        values = volume[volume != 0].astype(np.float64)
        if values.size:
            mean[channel], std[channel] = values.mean(), values.std() or 1.0
    return mean.astype(np.float32), std.astype(np.float32)


def normalise(image: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Return the z-scores of the non-zero voxels, float32; zero stays zero.

    Args:
        image: int16 (..., 4, D, H, W).
        mean, std: (..., 4).
    """
    values = image.float()  # a copy, changed in place: each copy of a volume takes 64 MiB
    values -= mean[..., None, None, None]
    values /= std[..., None, None, None]
    values *= image != 0
    return values
