"""The sums over voxels that the losses need, in one pass, and their gradient in another."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from trainable.model.kernels.tiles import tiling


@triton.jit
def _terms(x, t, gamma, positive, negative):
    """Return per voxel: probability, sign and size of its error, the error^gamma, cross-entropy, weight."""
    sign = 1.0 - 2.0 * t
    s = x * sign
    entropy = tl.maximum(s, 0.0) + tl.log(1.0 + tl.exp(-tl.abs(s)))  # softplus(s)
    error = tl.sigmoid(s)
    power = tl.exp(gamma * (s - entropy))  # error^gamma; log error = s - softplus(s)
    return tl.sigmoid(x), sign, error, power, entropy, t * positive + (1.0 - t) * negative


@triton.jit
def _region_sums(
    logits,
    target,
    partial,
    voxels,
    chunk,
    gamma,
    positive,
    negative,
    ln,
    lc,
    lv,
    tn,
    tc,
    tv,
    CHANNELS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """Sum over a chunk of voxels. ln, lc, lv, tn, tc, tv: strides of sample, channel and voxel of logits and target."""
    n, k = tl.program_id(0).to(tl.int64), tl.program_id(1)
    c = tl.arange(0, BLOCK_C)
    prob = tl.zeros([BLOCK_S, BLOCK_C], tl.float32)
    truth = tl.zeros([BLOCK_S, BLOCK_C], tl.float32)
    hit = tl.zeros([BLOCK_S, BLOCK_C], tl.float32)
    cost = tl.zeros([BLOCK_S, BLOCK_C], tl.float32)
    for start in range(k * chunk, min((k + 1) * chunk, voxels), BLOCK_S):
        s = start + tl.arange(0, BLOCK_S)
        mask = (s < voxels)[:, None] & (c < CHANNELS)[None, :]
        x = tl.load(logits + n * ln + s[:, None] * lv + c[None, :] * lc, mask=mask, other=0.0).to(tl.float32)
        t = tl.load(target + n * tn + s[:, None] * tv + c[None, :] * tc, mask=mask, other=0).to(tl.float32)
        p, _, _, power, entropy, weight = _terms(x, t, gamma, positive, negative)
        prob += tl.where(mask, p, 0.0)
        truth += t
        hit += p * t
        cost += tl.where(mask, weight * power * entropy, 0.0)
    partial += ((n * tl.num_programs(1) + k) * 4) * CHANNELS + c
    tl.store(partial, tl.sum(prob, 0), mask=c < CHANNELS)
    tl.store(partial + CHANNELS, tl.sum(truth, 0), mask=c < CHANNELS)
    tl.store(partial + 2 * CHANNELS, tl.sum(hit, 0), mask=c < CHANNELS)
    tl.store(partial + 3 * CHANNELS, tl.sum(cost, 0), mask=c < CHANNELS)


@triton.jit
def _region_sums_grad(
    logits,
    target,
    grad,
    out,
    voxels,
    gamma,
    positive,
    negative,
    ln,
    lc,
    lv,
    tn,
    tc,
    tv,
    CHANNELS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """Compute the gradient of the logits, in their layout. grad: (4, N, CHANNELS)."""
    n, s = tl.program_id(1).to(tl.int64), tl.program_id(0) * BLOCK_S + tl.arange(0, BLOCK_S)
    c = tl.arange(0, BLOCK_C)
    mask = (s < voxels)[:, None] & (c < CHANNELS)[None, :]
    offset = n * ln + s[:, None] * lv + c[None, :] * lc
    x = tl.load(logits + offset, mask=mask, other=0.0).to(tl.float32)
    t = tl.load(target + n * tn + s[:, None] * tv + c[None, :] * tc, mask=mask, other=0).to(tl.float32)
    p, sign, error, power, entropy, weight = _terms(x, t, gamma, positive, negative)
    row = tl.num_programs(1) * CHANNELS
    of_prob = tl.load(grad + n * CHANNELS + c, mask=c < CHANNELS, other=0.0)[None, :]
    of_hit = tl.load(grad + 2 * row + n * CHANNELS + c, mask=c < CHANNELS, other=0.0)[None, :]
    of_cost = tl.load(grad + 3 * row + n * CHANNELS + c, mask=c < CHANNELS, other=0.0)[None, :]
    value = (of_prob + of_hit * t) * p * (1.0 - p)
    value += of_cost * weight * sign * power * (error + gamma * (1.0 - error) * entropy)
    tl.store(out + offset, value.to(out.dtype.element_ty), mask=mask)


def layout(x: Tensor) -> tuple[int, int, int]:
    """Return the strides of sample, channel and voxel of (N, C, D, H, W), whose voxels must have one stride."""
    assert x.stride(3) == x.stride(4) * x.shape[4]
    assert x.stride(2) == x.stride(3) * x.shape[3]
    return x.stride(0), x.stride(1), x.stride(4)


class RegionSums(torch.autograd.Function):
    """losses.region_sums on a GPU as an autograd function, its forward and backward one Triton kernel each."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor, gamma: float, positive: float, negative: float) -> Tensor:
        """Return the sums of losses.region_sums, float32 (4, N, C).

        Args:
            logits: (N, C, D, H, W) of any floating dtype.
            target: of the same shape, 0 or 1.
            gamma, positive, negative: `gamma` and the two `weights` of losses.region_sums.
        """
        samples, channels, voxels = logits.shape[0], logits.shape[1], logits[0, 0].numel()
        block_s, block_c, chunks, chunk = tiling(voxels, channels, samples)
        partial = torch.empty(samples, chunks, 4, channels, device=logits.device)
        sizes = {"CHANNELS": channels, "BLOCK_C": block_c, "BLOCK_S": block_s}
        ctx.arguments, ctx.sizes = (gamma, positive, negative, *layout(logits), *layout(target)), sizes
        _region_sums[samples, chunks](logits, target, partial, voxels, chunk, *ctx.arguments, **sizes)
        ctx.save_for_backward(logits, target)
        return partial.sum(1).transpose(0, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient of the logits."""
        logits, target = ctx.saved_tensors
        out, voxels = torch.empty_like(logits), logits[0, 0].numel()
        assert out.stride() == logits.stride()
        grid = triton.cdiv(voxels, ctx.sizes["BLOCK_S"]), logits.shape[0]
        _region_sums_grad[grid](logits, target, grad.contiguous(), out, voxels, *ctx.arguments, **ctx.sizes)
        return out, None, None, None, None
