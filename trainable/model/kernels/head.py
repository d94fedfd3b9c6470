"""The 1x1x1 convolution to the logits; cudnn would pad its three output channels to eight."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from trainable.model.kernels.tiles import PROGRAMS, TILE, empty_like

OUT = 16  # output channels of a tile, the minimum of a matrix product


@triton.jit
def _head(x, weight, bias, y, rows, channels, out, OUT: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr):
    """Compute y[s, o] = sum over c of x[s, c] weight[o, c], + bias[o]."""
    s, c, o = tl.program_id(0).to(tl.int64) * BLOCK_S + tl.arange(0, BLOCK_S), tl.arange(0, BLOCK_C), tl.arange(0, OUT)
    mask = (s < rows)[:, None] & (c < channels)[None, :]
    value = tl.load(x + s[:, None] * channels + c[None, :], mask=mask, other=0.0)
    inside = (c < channels)[:, None] & (o < out)[None, :]
    w = tl.load(weight + o[None, :] * channels + c[:, None], mask=inside, other=0.0).to(value.dtype)
    total = tl.dot(value, w, input_precision="ieee") + tl.load(bias + o, mask=o < out, other=0.0)[None, :]
    tl.store(
        y + s[:, None] * out + o[None, :], total.to(y.dtype.element_ty), mask=(s < rows)[:, None] & (o < out)[None, :]
    )


@triton.jit
def _head_grad(
    x,
    weight,
    grad,
    dx,  # may be x
    of_weight,
    of_bias,
    rows,
    channels,
    out,
    chunk,
    OUT: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Compute dx, and each chunk's part of the gradients of weight (chunks, out, channels) and bias (chunks, out)."""
    k, c, o = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK_C), tl.arange(0, OUT)
    inside = (o < out)[:, None] & (c < channels)[None, :]
    w = tl.load(weight + o[:, None] * channels + c[None, :], mask=inside, other=0.0).to(x.dtype.element_ty)
    weights = tl.zeros([OUT, BLOCK_C], tl.float32)
    biases = tl.zeros([OUT], tl.float32)
    for start in range(k * chunk, min((k + 1) * chunk, rows), BLOCK_S):
        s = start + tl.arange(0, BLOCK_S)
        mask = (s < rows)[:, None] & (c < channels)[None, :]
        offset = s[:, None] * channels + c[None, :]
        value = tl.load(x + offset, mask=mask, other=0.0)
        g = tl.load(grad + s[:, None] * out + o[None, :], mask=(s < rows)[:, None] & (o < out)[None, :], other=0.0)
        g = g.to(value.dtype)
        tl.debug_barrier()  # dx may be x, which another thread may still read
        tl.store(dx + offset, tl.dot(g, w, input_precision="ieee").to(dx.dtype.element_ty), mask=mask)
        weights += tl.dot(tl.trans(g), value, input_precision="ieee")
        biases += tl.sum(g.to(tl.float32), 0)
    tl.store(of_weight + (k * out + o[:, None]) * channels + c[None, :], weights, mask=inside)
    tl.store(of_bias + k * out + o, biases, mask=o < out)


class Head(torch.autograd.Function):
    """unet3d.head on a GPU as an autograd function, its forward and backward one Triton kernel each."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, reuse_input_memory: bool) -> Tensor:
        """Return the convolution of x (N, C, D, H, W) with weight (O, C, 1, 1, 1) and bias (O,): (N, O, D, H, W).

        Args:
            bias: of at most 16 output channels.
            reuse_input_memory: nothing else reads x any more, so the gradient of x may overwrite x.
        """
        x = x.contiguous(memory_format=torch.channels_last_3d)
        channels, out = x.shape[1], len(bias)
        y = empty_like(x, out)
        rows = x.numel() // channels
        sizes = Head.sizes(channels)
        grid = (triton.cdiv(rows, sizes["BLOCK_S"]),)
        _head[grid](x, weight, bias, y, rows, channels, out, **sizes)
        ctx.save_for_backward(x, weight)
        ctx.reuse_input_memory = reuse_input_memory
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """Return the gradients of x, weight and bias."""
        x, weight = ctx.saved_tensors
        grad = grad.contiguous(memory_format=torch.channels_last_3d)
        channels, out = x.shape[1], weight.shape[0]
        dx = x if ctx.reuse_input_memory else torch.empty_like(x)
        rows = x.numel() // channels
        sizes = Head.sizes(channels)
        blocks = triton.cdiv(rows, sizes["BLOCK_S"])
        chunk = triton.cdiv(blocks, min(blocks, PROGRAMS)) * sizes["BLOCK_S"]
        chunks = triton.cdiv(rows, chunk)
        of_weight = torch.empty(chunks, *weight.shape, device=x.device)
        of_bias = torch.empty(chunks, out, device=x.device)
        _head_grad[(chunks,)](x, weight, grad, dx, of_weight, of_bias, rows, channels, out, chunk, **sizes)
        return dx, of_weight.sum(0).to(weight.dtype), of_bias.sum(0).to(weight.dtype), None

    @staticmethod
    def sizes(channels: int) -> dict[str, int]:
        """Return the sizes of a tile for this number of input channels; a matrix product needs at least 16 rows."""
        block_c = max(16, triton.next_power_of_2(channels))
        return {"OUT": OUT, "BLOCK_S": max(16, TILE // block_c), "BLOCK_C": block_c}
