"""Rotate and zoom a patch, taken from a block of its case that is as large as the transform needs.

The transform is drawn on the CPU from (seed, epoch, index): by the thread that reads the block, and once more where the
patch is cropped out of it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from trainable.core.config import Shape3, TrainConfig

Matrix = NDArray[np.float64]  # (3, 3)

# Largest transforms at augment_strength 1.
ROTATION = math.radians(15)
ZOOM = 0.2


def augmentation_generator(config: TrainConfig, epoch: int, index: int) -> np.random.Generator:
    """Return the generator of a patch's transforms; `draw_transform` is its first use."""
    return np.random.default_rng([config.seed, epoch, index, 2])


def draw_transform(rng: np.random.Generator, config: TrainConfig) -> Matrix | None:
    """Return the rotation and zoom of a patch, as `transform_matrix` does, or None if it gets neither.

    rng: of `augmentation_generator`.
    """
    strength = config.augment_strength
    rotate, zoom = rng.random() < config.rotate_prob, rng.random() < config.zoom_prob
    if not (rotate or zoom):
        return None
    angles = rng.uniform(-ROTATION, ROTATION, 3) * strength * rotate
    return transform_matrix(angles, float(1 + zoom * strength * rng.uniform(-ZOOM, ZOOM)))


def transform_matrix(angles: NDArray[np.float64], zoom: float) -> Matrix:
    """Return the matrix that turns a voxel's offset from the centre of a patch into that of its source in the case.

    Args:
        angles: in radians, about the axes of depth, height and width, (3,).
        zoom: above 1 magnifies.
    """
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        i, j = [other for other in range(3) if other != axis]
        turn = np.eye(3)
        turn[[i, j], [i, j]] = math.cos(angle)
        turn[i, j], turn[j, i] = -math.sin(angle), math.sin(angle)
        matrix = matrix @ turn
    return matrix / zoom


def source_block(matrix: Matrix, start: Shape3, shape: Shape3, case_shape: Shape3) -> tuple[Shape3, Shape3]:
    """Return the first voxel and the shape of the block of a case that a patch is interpolated from.

    The block has every voxel of the case that the patch needs, so it is never larger than the case, and the patch loses
    nothing; what is needed from outside the case is 0.

    Args:
        matrix: of the patch's transform.
        start, shape: of the patch as it is without the transform; it may reach beyond the case.
        case_shape: (D, H, W).
    """
    half = (np.array(shape) - 1) / 2
    centre, reach = start + half, np.abs(matrix) @ half
    size = np.array(case_shape)
    low = np.clip(np.floor(centre - reach), 0, size - 1).astype(int)
    high = np.clip(np.ceil(centre + reach) + 1, low + 1, size).astype(int)
    return _three(low), _three(high - low)


def _three(numbers: NDArray[Any]) -> Shape3:
    """Return three numbers as a tuple."""
    return int(numbers[0]), int(numbers[1]), int(numbers[2])


def crop_transformed(x: Tensor, y: Tensor, matrix: Matrix, start: Shape3, shape: Shape3) -> tuple[Tensor, Tensor]:
    """Return a patch of a block x and its target y, both (C, D, H, W), rotated and zoomed about the patch's centre.

    x is interpolated linearly, y by nearest neighbour; what comes from outside the block is zero in both.

    Args:
        matrix: as `transform_matrix` returns it.
        start: first voxel of the patch in the block, without the transform; it may be outside.
        shape: of the patch.
    """
    block = np.array(x.shape[1:], float)
    # From the middle of the block to that of the patch, in voxels.
    shift = np.array(start) + np.array(shape) / 2 - block / 2
    # grid_sample's coordinates run from -1 to 1 in the order width, height, depth: the rotation is made in voxels
    linear = (np.diag(1 / block) @ matrix @ np.diag(np.array(shape, float)))[::-1, ::-1]
    affine = np.column_stack([linear, (2 * shift / block)[::-1]]).astype(np.float32)
    theta = torch.from_numpy(affine)[None].to(x.device, non_blocking=True)
    grid = F.affine_grid(theta, [1, 1, *shape], align_corners=False)
    image = F.grid_sample(x[None], grid, mode="bilinear", align_corners=False)
    target = F.grid_sample(y[None].to(x.dtype), grid, mode="nearest", align_corners=False)
    return image[0], target[0].to(y.dtype)
