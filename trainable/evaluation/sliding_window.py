"""A volume predicted by overlapping windows that a Gaussian blends.

The same as MONAI's sliding_window_inference (https://github.com/Project-MONAI/MONAI), which the tests compare it with;
importing MONAI takes a process up to 14 s, where it finds all that it can make use of.
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
    """The logits of a volume, (1, 4, D, H, W) -> float32 (1, 3, D, H, W), on its device.

    Args:
        predict: windows (N, 4, *window) -> their logits float32 (N, 3, *window), N <= batch_size.
        overlap: share of a window that the next one repeats, >= 0 and < 1.

    A volume smaller than the window is padded with zeros on both sides.
    """
    missing = [max(0, length - size) for length, size in zip(window, volume.shape[2:], strict=True)]
    padding = [(each // 2, each - each // 2) for each in missing]
    padded = F.pad(volume, [each for pair in reversed(padding) for each in pair])
    starts = product(*map(window_starts, padded.shape[2:], window, [overlap] * 3))
    places = [
        tuple(slice(first, first + length) for first, length in zip(each, window, strict=True)) for each in starts
    ]
    weight = gaussian(window, volume.device)
    total = torch.zeros(len(REGIONS), *padded.shape[2:], device=volume.device)
    weights = torch.zeros(padded.shape[2:], device=volume.device)
    for first in range(0, len(places), batch_size):
        group = places[first : first + batch_size]
        for place, logits in zip(group, predict(torch.cat([padded[:, :, *place] for place in group])), strict=True):
            total[:, *place] += logits * weight
            weights[*place] += weight
    total /= weights
    inside = [slice(before, before + size) for (before, _), size in zip(padding, volume.shape[2:], strict=True)]
    return total[None, :, *inside]


def window_starts(size: int, length: int, overlap: float) -> list[int]:
    """Where the windows along an axis begin; the last one ends with the axis."""
    step = max(1, int(length * (1 - overlap)))
    return [min(place * step, size - length) for place in range(1 + math.ceil((size - length) / step))]


def gaussian(window: Shape3, device: torch.device) -> Tensor:
    """The weights of a window's voxels, float32 (D, H, W): a deviation is an eighth of its size."""
    weights = torch.ones((), device=device)
    for length in window:
        offsets = torch.arange(length, device=device) - (length - 1) / 2
        weights = weights[..., None] * torch.exp(-0.5 * (offsets / (length / 8)) ** 2)
    return weights.clamp(min=1e-3)
