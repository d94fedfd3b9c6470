"""Losses: pure functions of logits and targets, in float32 whatever the precision of the network.

Every function takes logits (N, C, D, H, W) of any floating dtype and targets of the same shape, 0 or 1, and returns a
scalar of float32 (float64 for float64 logits). C are the regions, which overlap, hence sigmoid and not softmax.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from trainable.core.config import TrainConfig

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
    """All that the losses need of the voxels, (4, N, C): sums of probability, target, their product, cross-entropy.

    The cross-entropy of a voxel counts times (1 - p_t)^gamma and times its weight, that of tumour or of the rest.
    fused: in one kernel, on a GPU; this is its reference.
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
    return torch.stack([each.sum(VOXELS) for each in (prob, t, prob * t, entropy)])


def upcast(logits: Tensor) -> Tensor:
    """float32, or float64 where it is that already: sums over a patch overflow float16."""
    return logits if logits.dtype == torch.float64 else logits.float()


def overlap_loss(sums: Tensor, *, alpha: float, beta: float, batch: bool) -> Tensor:
    """Tversky's loss of region_sums."""
    prob, target, hit = (sums[:3].sum(1) if batch else sums[:3]).unbind(0)
    ratio = (hit + SMOOTH) / (hit + alpha * (prob - hit) + beta * (target - hit) + SMOOTH)
    return (1 - ratio).mean()


def entropy_loss(sums: Tensor, logits: Tensor) -> Tensor:
    """The mean cross-entropy of region_sums of these logits."""
    return sums[3].sum() / logits.numel()


def dice_loss(logits: Tensor, target: Tensor, *, batch: bool = True) -> Tensor:
    """1 - Dice of each region, then the mean (Milletari et al. 2016). In [0, 1]. batch: see tversky_loss."""
    return tversky_loss(logits, target, alpha=0.5, beta=0.5, batch=batch)


def tversky_loss(logits: Tensor, target: Tensor, *, alpha: float, beta: float, batch: bool = True) -> Tensor:
    """1 - TP / (TP + alpha FP + beta FN) of each region, then the mean (Salehi et al. 2017).

    batch: the batch counts as one volume ("batch Dice"), so that a patch without tumour does no harm; else each sample
    counts on its own, and the mean is over samples and regions.
    """
    return overlap_loss(region_sums(logits, target), alpha=alpha, beta=beta, batch=batch)


def bce_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy, the mean over voxels and regions. In nats, >= 0."""
    return entropy_loss(region_sums(logits, target), logits)


def focal_loss(logits: Tensor, target: Tensor, *, gamma: float, alpha: float) -> Tensor:
    """Cross-entropy times (1 - p_t)^gamma and alpha or 1 - alpha, the mean (Lin et al. 2017). In nats, >= 0."""
    return entropy_loss(region_sums(logits, target, gamma=gamma, weights=(alpha, 1 - alpha)), logits)


# By name, of region_sums of some logits with voxel_terms.
BASE_LOSSES: dict[str, Callable[[Tensor, Tensor, TrainConfig], Tensor]] = {
    "bce": lambda sums, logits, config: entropy_loss(sums, logits),
    "focal": lambda sums, logits, config: entropy_loss(sums, logits),
    "tversky": lambda sums, logits, config: overlap_loss(
        sums, alpha=config.tversky_alpha, beta=config.tversky_beta, batch=config.batch_dice
    ),
}


def voxel_terms(config: TrainConfig) -> dict[str, Any]:
    """How region_sums weighs the cross-entropy of a voxel."""
    if config.base_loss != "focal":
        return {}
    return {"gamma": config.focal_gamma, "weights": (config.focal_alpha, 1 - config.focal_alpha)}


class Loss(NamedTuple):
    """total = loss_weights[0] * base + loss_weights[1] * dice, each a scalar tensor."""

    total: Tensor
    base: Tensor
    dice: Tensor


def head_weights(heads: int) -> list[float]:
    """Weights 1, 1/2, 1/4, ... of the deep-supervision heads, normalised to a sum of 1."""
    weights = [0.5**level for level in range(heads)]
    return [weight / sum(weights) for weight in weights]


def make_loss(config: TrainConfig) -> Callable[[Sequence[Tensor], Tensor], Loss]:
    """The loss of a config: a function of the heads' logits, from full resolution down, and the target.

    The target (N, 3, D, H, W) is downsampled to each head by nearest neighbour. The weighted mean over the heads keeps
    the scale of a single head.
    """
    base_loss, terms = BASE_LOSSES[config.base_loss], voxel_terms(config)
    base_weight, dice_weight = config.loss_weights
    fused = config.fused  # once: it looks for a compiler

    def loss(heads: Sequence[Tensor], target: Tensor) -> Loss:
        base = dice = upcast(heads[0]).new_zeros(())
        for logits, weight in zip(heads, head_weights(len(heads)), strict=True):
            step = target.shape[2] // logits.shape[2]
            goal = target[..., ::step, ::step, ::step].contiguous()
            sums = region_sums(logits, goal, **terms, fused=fused)
            base = base + weight * base_loss(sums, logits, config)
            dice = dice + weight * overlap_loss(sums, alpha=0.5, beta=0.5, batch=config.batch_dice)
        return Loss(base_weight * base + dice_weight * dice, base, dice)

    return loss
