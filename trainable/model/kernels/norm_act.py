"""Instance norm and leaky ReLU: two passes forward, two backward."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from trainable.model.kernels.tiles import tiling


@triton.jit
def _channel(x, sums, weight, bias, n, c, inside, voxels, channels, eps):
    """Return per channel of a sample: mean, 1 / deviation, weight, bias. x: pointer to the sample's first voxel."""
    pivot = tl.load(x + c, mask=inside, other=0.0).to(tl.float32)
    first = tl.load(sums + (n * 2) * channels + c, mask=inside, other=0.0) / voxels
    second = tl.load(sums + (n * 2 + 1) * channels + c, mask=inside, other=0.0) / voxels
    variance = tl.maximum(second - first * first, 0.0)
    w = tl.load(weight + c, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(bias + c, mask=inside, other=0.0).to(tl.float32)
    return pivot + first, 1.0 / tl.sqrt(variance + eps), w, b


@triton.jit
def _store_sums(partial, one, two, n, k, c, inside, channels):
    """Store both sums of each channel over chunk k."""
    partial += (n * tl.num_programs(1) + k) * 2 * channels
    tl.store(partial + c, tl.sum(one, 0), mask=inside)
    tl.store(partial + channels + c, tl.sum(two, 0), mask=inside)


@triton.jit
def _norm_sums(x, partial, voxels, channels, chunk, BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr):
    """Sum x - pivot and its square over a chunk of voxels; the pivot is the sample's first voxel."""
    n, k = tl.program_id(0).to(tl.int64), tl.program_id(1)
    c = tl.arange(0, BLOCK_C)
    inside = c < channels
    x += n * voxels * channels
    pivot = tl.load(x + c, mask=inside, other=0.0).to(tl.float32)
    one = tl.zeros([BLOCK_S, BLOCK_C], tl.float32)
    two = tl.zeros([BLOCK_S, BLOCK_C], tl.float32)
    for start in range(k * chunk, min((k + 1) * chunk, voxels), BLOCK_S):
        s = start + tl.arange(0, BLOCK_S)
        mask = (s < voxels)[:, None] & inside[None, :]
        value = tl.load(x + s[:, None] * channels + c[None, :], mask=mask, other=0.0).to(tl.float32)
        value = tl.where(mask, value - pivot[None, :], 0.0)
        one += value
        two += value * value
    _store_sums(partial, one, two, n, k, c, inside, channels)


@triton.jit
def _norm_apply(
    x,
    sums,
    weight,
    bias,
    skip,
    y,
    voxels,
    channels,
    eps,
    slope,
    SKIP: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Compute y = leaky_relu((x - mean) / deviation * weight + bias [+ skip])."""
    n, s = tl.program_id(1).to(tl.int64), tl.program_id(0) * BLOCK_S + tl.arange(0, BLOCK_S)
    c = tl.arange(0, BLOCK_C)
    inside = c < channels
    base = n * voxels * channels
    mean, scale, w, b = _channel(x + base, sums, weight, bias, n, c, inside, voxels, channels, eps)
    scale *= w
    shift = b - mean * scale
    offset = base + s[:, None] * channels + c[None, :]
    mask = (s < voxels)[:, None] & inside[None, :]
    z = tl.load(x + offset, mask=mask, other=0.0).to(tl.float32) * scale[None, :] + shift[None, :]
    if SKIP:
        z += tl.load(skip + offset, mask=mask, other=0.0).to(tl.float32)
    tl.store(y + offset, tl.where(z > 0, z, z * slope).to(y.dtype.element_ty), mask=mask)


@triton.jit
def _gradient_of_z(x, y, grad, offset, mask, mean, scale, weight, bias, slope, SKIP: tl.constexpr):
    """Return the normalised x and the gradient before the leaky ReLU, whose branch follows from y or is recomputed."""
    hat = (tl.load(x + offset, mask=mask, other=0.0).to(tl.float32) - mean[None, :]) * scale[None, :]
    if SKIP:  # noqa: SIM108 - Triton compiles only one branch
        z = tl.load(y + offset, mask=mask, other=0.0).to(tl.float32)
    else:
        z = hat * weight[None, :] + bias[None, :]
    incoming = tl.load(grad + offset, mask=mask, other=0.0).to(tl.float32)
    return hat, tl.where(z > 0, incoming, incoming * slope)


@triton.jit
def _norm_grad_sums(
    x,
    y,
    grad,
    sums,
    weight,
    bias,
    partial,
    voxels,
    channels,
    chunk,
    eps,
    slope,
    SKIP: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Sum the gradient before the leaky ReLU, and its product with the normalised x, over a chunk of voxels."""
    n, k = tl.program_id(0).to(tl.int64), tl.program_id(1)
    c = tl.arange(0, BLOCK_C)
    inside = c < channels
    base = n * voxels * channels
    mean, scale, w, b = _channel(x + base, sums, weight, bias, n, c, inside, voxels, channels, eps)
    one = tl.zeros([BLOCK_S, BLOCK_C], tl.float32)
    two = tl.zeros([BLOCK_S, BLOCK_C], tl.float32)
    for start in range(k * chunk, min((k + 1) * chunk, voxels), BLOCK_S):
        s = start + tl.arange(0, BLOCK_S)
        mask = (s < voxels)[:, None] & inside[None, :]
        offset = base + s[:, None] * channels + c[None, :]
        hat, dz = _gradient_of_z(x, y, grad, offset, mask, mean, scale, w, b, slope, SKIP)
        one += dz
        two += dz * hat
    _store_sums(partial, one, two, n, k, c, inside, channels)


@triton.jit
def _norm_grad_apply(
    x,
    y,
    grad,
    sums,
    grad_sums,
    weight,
    bias,
    dx,  # may be grad
    dskip,
    voxels,
    channels,
    eps,
    slope,
    SKIP: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Compute the gradients of x and of skip."""
    n, s = tl.program_id(1).to(tl.int64), tl.program_id(0) * BLOCK_S + tl.arange(0, BLOCK_S)
    c = tl.arange(0, BLOCK_C)
    inside = c < channels
    base = n * voxels * channels
    mean, scale, w, b = _channel(x + base, sums, weight, bias, n, c, inside, voxels, channels, eps)
    one = tl.load(grad_sums + (n * 2) * channels + c, mask=inside, other=0.0) / voxels
    two = tl.load(grad_sums + (n * 2 + 1) * channels + c, mask=inside, other=0.0) / voxels
    mask = (s < voxels)[:, None] & inside[None, :]
    offset = base + s[:, None] * channels + c[None, :]
    hat, dz = _gradient_of_z(x, y, grad, offset, mask, mean, scale, w, b, slope, SKIP)
    value = (dz - one[None, :] - hat * two[None, :]) * (scale * w)[None, :]
    tl.store(dx + offset, value.to(dx.dtype.element_ty), mask=mask)
    if SKIP:
        tl.store(dskip + offset, dz.to(dskip.dtype.element_ty), mask=mask)


class NormAct(torch.autograd.Function):
    """unet3d.norm_act on a GPU as an autograd function, its forward and backward two Triton kernels each.

    The gradient of x overwrites the gradient of y, so nothing else may refer to the latter: every operation that reads
    y must return a new tensor as its gradient, as convolutions do and an addition does not.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, skip: Tensor | None, eps: float, slope: float
    ) -> Tensor:
        """Return y = leaky_relu(instance_norm(x) [+ skip]) of the shape and dtype of x.

        Args:
            x, skip: (N, C, D, H, W) of any floating dtype; copied if not channels last.
            weight, bias: of the norm, (C,).
            eps: added to the variance.
            slope: of the leaky ReLU below 0.
        """
        x = x.contiguous(memory_format=torch.channels_last_3d)
        if skip is not None:
            skip = skip.contiguous(memory_format=torch.channels_last_3d)
        samples, channels, voxels = x.shape[0], x.shape[1], x[0, 0].numel()
        block_s, block_c, chunks, chunk = tiling(voxels, channels, samples)
        sizes = {"BLOCK_S": block_s, "BLOCK_C": block_c}
        partial = torch.empty(samples, chunks, 2, channels, device=x.device)
        _norm_sums[samples, chunks](x, partial, voxels, channels, chunk, **sizes)
        sums = partial.sum(1)
        y = torch.empty_like(x)
        grid = triton.cdiv(voxels, block_s), samples
        _norm_apply[grid](
            x,
            sums,
            weight,
            bias,
            x if skip is None else skip,
            y,
            voxels,
            channels,
            eps,
            slope,
            SKIP=skip is not None,
            **sizes,
        )
        ctx.save_for_backward(x, sums, weight, bias, *(() if skip is None else (y,)))
        ctx.eps, ctx.slope, ctx.skipped = eps, slope, skip is not None
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, weight, bias and skip."""
        x, sums, weight, bias, *rest = ctx.saved_tensors
        y = rest[0] if ctx.skipped else x
        grad = grad.contiguous(memory_format=torch.channels_last_3d)
        samples, channels, voxels = x.shape[0], x.shape[1], x[0, 0].numel()
        block_s, block_c, chunks, chunk = tiling(voxels, channels, samples)
        sizes = {"SKIP": ctx.skipped, "BLOCK_S": block_s, "BLOCK_C": block_c}
        partial = torch.empty(samples, chunks, 2, channels, device=x.device)
        _norm_grad_sums[samples, chunks](
            x, y, grad, sums, weight, bias, partial, voxels, channels, chunk, ctx.eps, ctx.slope, **sizes
        )
        grad_sums = partial.sum(1)
        dskip = torch.empty_like(x) if ctx.skipped else None
        grid = triton.cdiv(voxels, block_s), samples
        _norm_grad_apply[grid](
            x,
            y,
            grad,
            sums,
            grad_sums,
            weight,
            bias,
            grad,
            grad if dskip is None else dskip,
            voxels,
            channels,
            ctx.eps,
            ctx.slope,
            **sizes,
        )
        dbias, dweight = grad_sums.sum(0) if samples > 1 else grad_sums[0]
        return grad, dweight.to(weight.dtype), dbias.to(bias.dtype), dskip, None, None
