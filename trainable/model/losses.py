"""Losses: pure functions of logits and targets, computed in float32 in every precision of the network.

Logits are (N, C, D, H, W) of any floating dtype, targets of the same shape, 0 or 1. A loss is a scalar of float32
(float64 for float64 logits). C are the regions, which overlap, hence sigmoid and not softmax.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from trainable.core.config import TrainConfig
from trainable.core.division import Part
from trainable.core.ranks import sum_over_ranks
from trainable.model.fused_kernels import has_fused_kernels

SMOOTH = 1e-5  # keeps an empty region's ratio defined: 0 over 0 counts as a full match
VOXELS = (2, 3, 4)


def region_sums(
    logits: Tensor,
    target: Tensor,
    *,
    gamma: float = 0.0,
    weights: tuple[float, float] = (1.0, 1.0),
    fused: bool = False,
) -> Tensor:
    """Return the sums over voxels that the losses need, (4, N, C): probability, target, their product, cross-entropy.

    Args:
        gamma: exponent of the focal loss: a voxel's cross-entropy is multiplied by (1 - p_t)^gamma.
        weights: factors of the cross-entropy of voxels with target 1 and of those with target 0.
        fused: on a GPU, compute the sums by a Triton kernel, always in float32.
    """
    if fused and logits.is_cuda:
        from trainable.model.kernels.region_sums import RegionSums

        sums: Tensor = RegionSums.apply(logits, target, gamma, *weights)
        return sums
    x = upcast(logits)
    t = target.to(x.dtype)
    prob, entropy = x.sigmoid(), F.binary_cross_entropy_with_logits(x, t, reduction="none")
    if gamma:  # 1 - p_t through log-sigmoid: its gradient stays finite where p_t rounds to 1
        entropy = entropy * F.logsigmoid(x * (1 - 2 * t)).mul(gamma).exp()
    if weights != (1.0, 1.0):
        entropy = entropy * (weights[0] * t + weights[1] * (1 - t))
    return torch.stack([terms.sum(VOXELS) for terms in (prob, t, prob * t, entropy)])


def upcast(logits: Tensor) -> Tensor:
    """Return logits as float32, or unchanged if they are float64: sums over a patch overflow float16."""
    return logits if logits.dtype == torch.float64 else logits.float()


def overlap_loss(sums: Tensor, *, alpha: float, beta: float, batch: bool) -> Tensor:
    """Return the Tversky loss from region_sums; see tversky_loss for alpha, beta and batch."""
    prob, target, hit = (sums[:3].sum(1) if batch else sums[:3]).unbind(0)
    ratio = (hit + SMOOTH) / (hit + alpha * (prob - hit) + beta * (target - hit) + SMOOTH)
    return (1 - ratio).mean()


def entropy_loss(sums: Tensor, logits: Tensor) -> Tensor:
    """Return the mean cross-entropy over samples, voxels and regions, in nats, from region_sums.

    logits: (N, C, D, H, W); the sums may be of more samples of this size.
    """
    return sums[3].sum() / (sums.shape[1] * logits[0].numel())


def dice_loss(logits: Tensor, target: Tensor, *, batch: bool = True) -> Tensor:
    """Return the mean over regions of 1 - Dice (Milletari et al. 2016), in [0, 1]. batch: see tversky_loss."""
    return tversky_loss(logits, target, alpha=0.5, beta=0.5, batch=batch)


def tversky_loss(logits: Tensor, target: Tensor, *, alpha: float, beta: float, batch: bool = True) -> Tensor:
    """Return the mean over regions of 1 - TP / (TP + alpha FP + beta FN) (Salehi et al. 2017), in [0, 1].

    Args:
        alpha, beta: weights of the false positives and of the false negatives.
        batch: treat the batch as one volume ("batch Dice"), so that a patch without tumour does not distort the loss;
            else compute the loss per sample, and return the mean over samples and regions.
    """
    return overlap_loss(region_sums(logits, target), alpha=alpha, beta=beta, batch=batch)


def bce_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Return the mean binary cross-entropy over voxels and regions. In nats, >= 0."""
    return entropy_loss(region_sums(logits, target), logits)


def focal_loss(logits: Tensor, target: Tensor, *, gamma: float, alpha: float) -> Tensor:
    """Return the mean of the cross-entropy times (1 - p_t)^gamma and alpha (tumour) or 1 - alpha (others), in nats.

    Source: Lin et al. 2017.
    """
    return entropy_loss(region_sums(logits, target, gamma=gamma, weights=(alpha, 1 - alpha)), logits)


# Base losses by name, as functions of region_sums with the config's focal_terms, the logits and the config.
BASE_LOSSES: dict[str, Callable[[Tensor, Tensor, TrainConfig], Tensor]] = {
    "bce": lambda sums, logits, config: entropy_loss(sums, logits),
    "focal": lambda sums, logits, config: entropy_loss(sums, logits),
    "tversky": lambda sums, logits, config: overlap_loss(
        sums, alpha=config.tversky_alpha, beta=config.tversky_beta, batch=config.batch_dice
    ),
}


def focal_terms(config: TrainConfig) -> tuple[float, tuple[float, float]]:
    """Return gamma and weights for region_sums; 0 and (1, 1), which change nothing, if base_loss is not focal."""
    if config.base_loss != "focal":
        return 0.0, (1.0, 1.0)
    return config.focal_gamma, (config.focal_alpha, 1 - config.focal_alpha)


class Loss(NamedTuple):
    """total = loss_weights[0] * base + loss_weights[1] * dice, each a scalar tensor."""

    total: Tensor
    base: Tensor
    dice: Tensor


def head_weights(heads: int) -> list[float]:
    """Return the weights 1, 1/2, 1/4, ... of the deep-supervision heads, normalised to a sum of 1."""
    weights = [0.5**level for level in range(heads)]
    return [weight / sum(weights) for weight in weights]


class GatherSums(torch.autograd.Function):
    """Completes the sums of some samples of a micro-batch by those of its other samples, which other processes have.

    Each process computes the loss of the whole micro-batch from the result, and by its backward pass the gradient of
    this loss that comes from its own samples: added up over the processes, they are the gradient of the loss.
    """

    @staticmethod
    def forward(ctx: Any, sums: Tensor, part: Part, group: Any) -> Tensor:
        """Return the sums of all samples.

        Args:
            sums: of this process's samples, (..., N, C).
            part: the samples of the micro-batch that these are.
            group: the processes that have the micro-batch.
        """
        ctx.part, ctx.shape = part, sums.shape
        whole = sums.new_zeros((*sums.shape[:-2], part.samples, sums.shape[-1]))
        whole[..., part.start : part.stop, :] = sums[..., : part.stop - part.start, :]
        sum_over_ranks(whole, group)
        return whole

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """Return the gradient of the process's own samples; 0 for a sample that counts for nothing."""
        own = gradient.new_zeros(ctx.shape)
        own[..., : ctx.part.stop - ctx.part.start, :] = gradient[..., ctx.part.start : ctx.part.stop, :]
        return own, None, None


def make_loss(config: TrainConfig, group: Any = None) -> Callable[..., Loss]:
    """Return the loss of a config: a function of the logits of each head, from full resolution down, and the target.

    The target (N, 3, D, H, W) is downsampled to each head by nearest neighbour. The loss is the mean over the heads,
    weighted by `head_weights`, so its scale is that of a single head.

    group: the processes that train on each micro-batch together, if there are several. The loss function then has a
        third argument, the Part of the micro-batch that the logits are of, and returns the loss of all of it.
    """
    base_loss = BASE_LOSSES[config.base_loss]
    gamma, weights = focal_terms(config)
    base_weight, dice_weight = config.loss_weights
    fused = has_fused_kernels(config)

    def sums_of(logits: Tensor, target: Tensor) -> Tensor:
        step = target.shape[2] // logits.shape[2]
        downsampled = target[..., ::step, ::step, ::step].contiguous()
        return region_sums(logits, downsampled, gamma=gamma, weights=weights, fused=fused)

    def loss(heads: Sequence[Tensor], target: Tensor, part: Part | None = None) -> Loss:
        base = dice = upcast(heads[0]).new_zeros(())
        sums = [sums_of(logits, target) for logits in heads]
        if group is not None:
            sums = list(GatherSums.apply(torch.stack(sums), part, group))
        for own, logits, weight in zip(sums, heads, head_weights(len(heads)), strict=True):
            base = base + weight * base_loss(own, logits, config)
            dice = dice + weight * overlap_loss(own, alpha=0.5, beta=0.5, batch=config.batch_dice)
        return Loss(base_weight * base + dice_weight * dice, base, dice)

    return loss
