"""Prediction of a volume by overlapping windows, blended by a Gaussian.

The tests compare it with MONAI's sliding_window_inference (https://github.com/Project-MONAI/MONAI), which is not used
because importing MONAI takes a process up to 14 s if its optional packages are installed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from trainable.core.brats import REGIONS
from trainable.core.config import Shape3


def sliding_window(
    volume: Tensor, window: Shape3, batch_size: int, predict: Callable[[Tensor], Tensor], overlap: float
) -> Tensor:
    """Return the logits of a volume, (1, 4, D, H, W) -> float32 (1, 3, D, H, W), on its device.

    Along an axis on which the volume is smaller than the window it is padded with zeros on both sides.

    Args:
        window: (D, H, W) in voxels.
        predict: windows (N, 4, *window) -> their logits float32 (N, 3, *window), N <= batch_size.
        overlap: share of a window that the next one overlaps, >= 0 and < 1.
    """
    missing = [max(0, length - size) for length, size in zip(window, volume.shape[2:], strict=True)]
    padding = [(voxels // 2, voxels - voxels // 2) for voxels in missing]
    padded = F.pad(volume, [voxels for pair in reversed(padding) for voxels in pair])
    starts = product(*map(window_starts, padded.shape[2:], window, [overlap] * 3))
    boxes = [
        tuple(slice(first, first + length) for first, length in zip(start, window, strict=True)) for start in starts
    ]
    weight = gaussian(window, volume.device)
    total = torch.zeros(len(REGIONS), *padded.shape[2:], device=volume.device)
    weights = torch.zeros(padded.shape[2:], device=volume.device)
    for first in range(0, len(boxes), batch_size):
        group = boxes[first : first + batch_size]
        for box, logits in zip(group, predict(torch.cat([padded[:, :, *box] for box in group])), strict=True):
            total[:, *box] += logits * weight
            weights[*box] += weight
    total /= weights
    inside = [slice(before, before + size) for (before, _), size in zip(padding, volume.shape[2:], strict=True)]
    return total[None, :, *inside]


def window_starts(size: int, length: int, overlap: float) -> list[int]:
    """Return the first voxel of each window along an axis; the last window ends with the axis.

    Args:
        size: of the axis in voxels, at least `length`.
        length: of a window in voxels.
    """
    step = max(1, int(length * (1 - overlap)))
    return [min(index * step, size - length) for index in range(1 + math.ceil((size - length) / step))]


def gaussian(window: Shape3, device: torch.device) -> Tensor:
    """Return the weights of a window's voxels, float32 (D, H, W) >= 0.001: a Gaussian.

    Along each axis its deviation is an eighth of the window's length.
    """
    weights = torch.ones((), device=device)
    for length in window:
        offsets = torch.arange(length, device=device) - (length - 1) / 2
        weights = weights[..., None] * torch.exp(-0.5 * (offsets / (length / 8)) ** 2)
    return weights.clamp(min=1e-3)
