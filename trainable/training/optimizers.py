"""Optimizers and learning-rate schedulers by name."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from trainable.core.config import TrainConfig

Groups = list[dict[str, Any]]


def without_dynamo(kind: type[Optimizer]) -> Callable[..., Optimizer]:
    """An optimizer that does not import torch's compiler, which takes seconds a process.

    torch keeps its compiler out of an optimizer's functions, and to do so imports it when one is first called, unless
    it finds on the function how to call it without. That is set on torch's own functions, for this whole process; a
    version of torch that looks elsewhere imports as ever. `deterministic` and `gradient_checkpointing` import it too.
    """
    for function in (kind.add_param_group, kind.state_dict, kind.load_state_dict, kind.zero_grad):
        written = inspect.unwrap(function)
        vars(written).setdefault("__dynamo_disable", written)
    return type(kind.__name__, (kind,), {"step": torch.no_grad()(inspect.unwrap(kind.step))})


Adam, AdamW, SGD = map(without_dynamo, (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD))
OPTIMIZERS: dict[str, Callable[[Groups, TrainConfig, bool], Optimizer]] = {
    "adam": lambda groups, config, fused: Adam(groups, lr=config.lr, fused=fused),
    "adamw": lambda groups, config, fused: AdamW(groups, lr=config.lr, fused=fused),
    "sgd": lambda groups, config, fused: SGD(
        groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov and config.momentum > 0, fused=fused
    ),
}


def make_optimizer(network: nn.Module, config: TrainConfig) -> Optimizer:
    """The optimizer of a config; weight decay on convolution weights only, not on biases and norms."""
    groups: Groups = [
        {"params": [p for p in network.parameters() if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in network.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    fused = next(network.parameters()).is_cuda
    optimizer = OPTIMIZERS[config.optimizer](groups, config, fused)
    if config.optimizer == "sgd":  # torch's fused SGD leaves them unset where its first step is skipped
        for parameter in network.parameters():
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def cosine_factor(epoch: int, config: TrainConfig) -> float:
    """Linear warm-up to 1, then half a cosine down to min_lr / lr at the last epoch (Loshchilov & Hutter 2017)."""
    if epoch < config.warmup_epochs:
        return (epoch + 1) / (config.warmup_epochs + 1)
    lowest = min(1.0, config.min_lr / config.lr)
    progress = (epoch - config.warmup_epochs) / max(1, config.epochs - config.warmup_epochs)
    return lowest + (1 - lowest) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


# The factor on lr in an epoch, from 0. Closed forms, so that a resumed schedule cannot drift.
FACTORS: dict[str, Callable[[int, TrainConfig], float]] = {
    "cosine": cosine_factor,
    "step": lambda epoch, config: config.step_gamma ** (epoch // config.step_size),
    "exponential": lambda epoch, config: config.exponential_gamma**epoch,
    "poly": lambda epoch, config: max(0.0, 1 - epoch / config.epochs) ** config.poly_power,
}
MOVING = ("base_lrs", "last_epoch", "_step_count", "_last_lr", "best", "num_bad_epochs", "cooldown_counter")


class Schedule:
    """One lr schedule, stepped once an epoch; plateau is stepped by the validated metric."""

    def __init__(self, optimizer: Optimizer, config: TrainConfig) -> None:
        self.optimizer, self.config = optimizer, config
        self.scheduler: LambdaLR | ReduceLROnPlateau
        if config.scheduler == "plateau":
            self.scheduler = ReduceLROnPlateau(
                optimizer,
                mode="max",
                factor=config.plateau_factor,
                patience=config.plateau_patience,
                min_lr=config.min_lr,
                threshold=0,
            )
        else:
            factor = FACTORS[config.scheduler]
            self.scheduler = LambdaLR(optimizer, lambda epoch: factor(epoch, config))

    @property
    def lr(self) -> float:
        """The learning rate in force."""
        return float(self.optimizer.param_groups[0]["lr"])

    def step(self, score: float | None) -> None:
        """End an epoch. score: its validated metric, None where it was not validated."""
        if isinstance(self.scheduler, LambdaLR):
            self.scheduler.step()
        elif score is not None:
            self.scheduler.step(score)

    def state_dict(self) -> dict[str, Any]:
        """What moves during a training; what the config says comes from the config of the day."""
        return {name: value for name, value in self.scheduler.state_dict().items() if name in MOVING}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where a checkpoint stopped; a closed form as the config of the day has it."""
        if isinstance(self.scheduler, LambdaLR):
            self.scheduler.load_state_dict({**state, "lr_lambdas": [None] * len(self.optimizer.param_groups)})
            self.set_base_lr(self.config.lr)
        else:
            self.scheduler.load_state_dict(state)

    def set_base_lr(self, lr: float) -> None:
        """Replace the base learning rate; the schedule goes on at its place."""
        if isinstance(self.scheduler, LambdaLR):
            self.scheduler.base_lrs = [lr] * len(self.optimizer.param_groups)
            factors: Iterable[float] = [f(self.scheduler.last_epoch) for f in self.scheduler.lr_lambdas]
        else:
            factors = [1.0] * len(self.optimizer.param_groups)
        for group, factor in zip(self.optimizer.param_groups, factors, strict=True):
            group["lr"] = lr * factor
            group["initial_lr"] = lr
