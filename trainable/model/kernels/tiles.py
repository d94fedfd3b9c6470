"""How tensors are divided into the tiles of a kernel's programs."""

import torch
import triton
from torch import Tensor

TILE = 4096  # elements that a program processes at once
PROGRAMS = 528  # of a reduction: four per multiprocessor of an H100


def tiling(voxels: int, channels: int, samples: int) -> tuple[int, int, int, int]:
    """Return voxels per tile, channels per tile, and of a reduction: chunks per sample, voxels per chunk.

    Args:
        voxels: of a sample.
    """
    block_c = triton.next_power_of_2(channels)
    block_s = max(1, TILE // block_c)
    blocks = triton.cdiv(voxels, block_s)
    chunk = triton.cdiv(blocks, max(1, min(blocks, PROGRAMS // samples))) * block_s
    return block_s, block_c, triton.cdiv(voxels, chunk), chunk


def empty_like(x: Tensor, channels: int) -> Tensor:
    """Return an empty tensor (N, channels, D, H, W), channels last, with dtype and device of x (N, C, D, H, W)."""
    shape = x.shape[0], channels, *x.shape[2:]
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last_3d)
