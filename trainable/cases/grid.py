"""The grid of a case: where its voxels lie in its files, and when two voxel sizes count as the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainable.core.config import Shape3

ORIENTATION = "LPS"  # BraTS stores its cases so: x grows to the left, y to the back, z to the top
SPACING_TOLERANCE = 0.1  # as a share of the voxel size along an axis

Spacing = tuple[float, float, float]


@dataclass(frozen=True)
class FileGrid:
    """The grid of a case's files, before the case is turned to ORIENTATION or resampled.

    Attributes:
        shape: (X, Y, Z) in voxels, in the axes' order in the files.
        affine: float64 (4, 4) in mm.
    """

    shape: Shape3
    affine: NDArray[np.float64]


def three(sizes: Sequence[Any]) -> tuple[Any, Any, Any]:
    """Return three values as a tuple."""
    x, y, z = sizes
    return x, y, z


def same_spacing(spacing: Sequence[float], wanted: Sequence[float]) -> bool:
    """Return whether no axis of a voxel size, in mm, differs by more than SPACING_TOLERANCE from the wanted one."""
    return bool(np.all(np.abs(np.divide(spacing, wanted) - 1) <= SPACING_TOLERANCE + 1e-6))


def spacing_text(spacing: Sequence[float]) -> str:
    """Return a voxel size as text: "1 x 1 x 5 mm"."""
    return " x ".join(f"{side:.4g}" for side in spacing) + " mm"
