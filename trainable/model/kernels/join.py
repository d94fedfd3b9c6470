"""The skip connection: concatenate two tensors along their channels, and split the gradient."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from trainable.model.kernels.tiles import TILE, empty_like


@triton.jit
def _join(a, b, out, rows, of_a, of_b, SPLIT: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr):
    """Copy the rows of a and b into out, side by side, or with SPLIT out into a and b."""
    s, c = tl.program_id(0).to(tl.int64) * BLOCK_S + tl.arange(0, BLOCK_S)[:, None], tl.arange(0, BLOCK_C)[None, :]
    row = out + s * (of_a + of_b)
    in_a, in_b = (s < rows) & (c < of_a), (s < rows) & (c < of_b)
    if SPLIT:
        tl.store(a + s * of_a + c, tl.load(row + c, mask=in_a), mask=in_a)
        tl.store(b + s * of_b + c, tl.load(row + of_a + c, mask=in_b), mask=in_b)
    else:
        tl.store(row + c, tl.load(a + s * of_a + c, mask=in_a), mask=in_a)
        tl.store(row + of_a + c, tl.load(b + s * of_b + c, mask=in_b), mask=in_b)


class Join(torch.autograd.Function):
    """unet3d.join on a GPU as an autograd function, its forward and backward one Triton kernel each."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        """Concatenate (N, A, D, H, W) and (N, B, D, H, W) to (N, A + B, D, H, W)."""
        a, b = (x.contiguous(memory_format=torch.channels_last_3d) for x in (a, b))
        ctx.channels = a.shape[1], b.shape[1]
        out = empty_like(a, a.shape[1] + b.shape[1])
        Join.launch(a, b, out, split=False)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients of a and b."""
        grad = grad.contiguous(memory_format=torch.channels_last_3d)
        a, b = (empty_like(grad, channels) for channels in ctx.channels)
        Join.launch(a, b, grad, split=True)
        return a, b

    @staticmethod
    def launch(a: Tensor, b: Tensor, out: Tensor, *, split: bool) -> None:
        """Copy a and b into out along the channels, or with split copy out into a and b; all are channels last."""
        of_a, of_b = a.shape[1], b.shape[1]
        rows, block_c = out.numel() // (of_a + of_b), triton.next_power_of_2(max(of_a, of_b))
        block_s = max(1, TILE // block_c)
        _join[(triton.cdiv(rows, block_s),)](a, b, out, rows, of_a, of_b, SPLIT=split, BLOCK_S=block_s, BLOCK_C=block_c)
