"""The check that a U-Net can take a patch."""

from __future__ import annotations

import math

# Instance norm makes 0 of one voxel, and -1 and 1 of two, whatever they are.
UNFIT_VOXELS = {1: "one voxel", 2: "two voxels"}


def check_patch_fits(target_shape: tuple[int, int, int], depth: int, *, begun: bool = False) -> None:
    """Raise ValueError if a U-Net of this depth cannot take a patch of this shape (D, H, W).

    begun: it is that of a training that goes on, or of a model; two voxels were allowed once.
    """
    stride = 2 ** (depth - 1)
    for size in target_shape:
        if size < stride or size % stride:
            near = max(stride, round(size / stride) * stride)
            raise ValueError(
                f"target_shape {list(target_shape)} and depth {depth} do not fit: "
                f"each size must be a multiple of {stride} (2^(depth-1)); the nearest to {size} is {near}"
            )
    voxels = math.prod(size // stride for size in target_shape)
    if voxels in UNFIT_VOXELS and not (begun and voxels == 2):
        raise ValueError(
            f"target_shape {list(target_shape)} and depth {depth} leave {UNFIT_VOXELS[voxels]} at the lowest "
            f"resolution, which instance norm cannot normalise; double a size or lower depth"
        )
