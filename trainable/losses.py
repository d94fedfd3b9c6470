"""Losses: pure functions of logits and targets, in float32 whatever the precision of the network.

Every function takes logits (N, C, D, H, W) of any floating dtype and targets of the same shape, 0 or 1, and returns a
scalar of float32 (float64 for float64 logits). C are the regions, which overlap, hence sigmoid and not softmax.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from trainable.config import TrainConfig

SMOOTH = 1e-5  # keeps an empty region's ratio defined: 0 over 0 counts as a full match
VOXELS = (2, 3, 4)


def wide(logits: Tensor) -> Tensor:
    """float32, or float64 where it is that already: sums over a patch overflow float16."""
    return logits if logits.dtype == torch.float64 else logits.float()


def dice_loss(logits: Tensor, target: Tensor, *, batch: bool = True) -> Tensor:
    """1 - Dice of each region, then the mean (Milletari et al. 2016). In [0, 1]. batch: see tversky_loss."""
    return tversky_loss(logits, target, alpha=0.5, beta=0.5, batch=batch)


def tversky_loss(logits: Tensor, target: Tensor, *, alpha: float, beta: float, batch: bool = True) -> Tensor:
    """1 - TP / (TP + alpha FP + beta FN) of each region, then the mean (Salehi et al. 2017).

    batch: the batch counts as one volume ("batch Dice"), so that a patch without tumour does no harm; else each sample
    counts on its own, and the mean is over samples and regions.
    """
    voxels = (0, *VOXELS) if batch else VOXELS
    prob, target = wide(logits).sigmoid(), target.to(wide(logits).dtype)
    hit = (prob * target).sum(voxels)
    false_positive = prob.sum(voxels) - hit
    false_negative = target.sum(voxels) - hit
    ratio = (hit + SMOOTH) / (hit + alpha * false_positive + beta * false_negative + SMOOTH)
    return (1 - ratio).mean()


def bce_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy, the mean over voxels and regions. In nats, >= 0."""
    return F.binary_cross_entropy_with_logits(wide(logits), target.to(wide(logits).dtype))


def focal_loss(logits: Tensor, target: Tensor, *, gamma: float, alpha: float) -> Tensor:
    """Cross-entropy times (1 - p_t)^gamma and alpha or 1 - alpha, the mean (Lin et al. 2017). In nats, >= 0."""
    logits = wide(logits)
    target = target.to(logits.dtype)
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    # 1 - p_t through log-sigmoid: its gradient stays finite where p_t rounds to 1
    miss = F.logsigmoid(logits * (1 - 2 * target)).mul(gamma).exp()
    balance = alpha * target + (1 - alpha) * (1 - target)
    return (balance * miss * entropy).mean()


BASE_LOSSES: dict[str, Callable[[TrainConfig], Callable[[Tensor, Tensor], Tensor]]] = {
    "bce": lambda config: bce_loss,
    "focal": lambda config: lambda x, y: focal_loss(x, y, gamma=config.focal_gamma, alpha=config.focal_alpha),
    "tversky": lambda config: (
        lambda x, y: tversky_loss(x, y, alpha=config.tversky_alpha, beta=config.tversky_beta, batch=config.batch_dice)
    ),
}


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
    base_loss = BASE_LOSSES[config.base_loss](config)
    base_weight, dice_weight = config.loss_weights

    def loss(heads: Sequence[Tensor], target: Tensor) -> Loss:
        base = dice = wide(heads[0]).new_zeros(())
        for logits, weight in zip(heads, head_weights(len(heads)), strict=True):
            goal = target if logits.shape == target.shape else F.interpolate(target, logits.shape[2:], mode="nearest")
            base = base + weight * base_loss(logits, goal)
            dice = dice + weight * dice_loss(logits, goal, batch=config.batch_dice)
        return Loss(base_weight * base + dice_weight * dice, base, dice)

    return loss
