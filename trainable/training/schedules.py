"""Learning-rate schedules by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from trainable.core.config import TrainConfig


def cosine_factor(epoch: int, config: TrainConfig) -> float:
    """Return the factor on lr in an epoch, counted from 0 (Loshchilov & Hutter 2017).

    It rises linearly to 1 during warmup_epochs, then falls along half a cosine, which would reach min_lr / lr (1 if
    that is more) in the epoch after the last.
    """
    if epoch < config.warmup_epochs:
        return (epoch + 1) / (config.warmup_epochs + 1)
    lowest = min(1.0, config.min_lr / config.lr)
    progress = (epoch - config.warmup_epochs) / max(1, config.epochs - config.warmup_epochs)
    return lowest + (1 - lowest) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def multistep_factor(epoch: int, config: TrainConfig) -> float:
    """Return the factor on lr in an epoch, counted from 0: step_gamma for each milestone up to it, never below min_lr.

    A milestone that is there twice counts twice. min_lr above lr does not raise it.
    """
    reductions = sum(milestone <= epoch for milestone in config.milestones)
    return max(min(1.0, config.min_lr / config.lr), config.step_gamma**reductions)


# The factor on lr per epoch, counted from 0. Closed forms, so that a resumed schedule cannot drift.
FACTORS: dict[str, Callable[[int, TrainConfig], float]] = {
    "cosine": cosine_factor,
    "step": lambda epoch, config: config.step_gamma ** (epoch // config.step_size),
    "multistep": multistep_factor,
    "exponential": lambda epoch, config: config.exponential_gamma**epoch,
    "poly": lambda epoch, config: max(0.0, 1 - epoch / config.epochs) ** config.poly_power,
}


PLATEAU_STATE = ("best", "num_bad_epochs", "cooldown_counter", "last_epoch")  # what changes during a training


class Schedule:
    """Sets the learning rate of an optimizer per epoch.

    It is the option `lr` times a closed form; for `plateau`, torch's ReduceLROnPlateau lowers it by the validated
    metric.
    """

    def __init__(self, optimizer: Optimizer, config: TrainConfig) -> None:
        self.optimizer, self.config = optimizer, config
        self.epoch = 0  # finished epochs
        self.plateau: ReduceLROnPlateau | None = None
        if config.scheduler == "plateau":
            self.plateau = ReduceLROnPlateau(
                optimizer,
                mode="max",
                factor=config.plateau_factor,
                patience=config.plateau_patience,
                min_lr=config.min_lr,
                threshold=0,
            )
        self.set_base_lr(config.lr)

    @property
    def lr(self) -> float:
        """The current learning rate."""
        return float(self.optimizer.param_groups[0]["lr"])

    def step(self, score: float | None) -> None:
        """End an epoch: set the learning rate of the next one.

        score: the epoch's validated metric; None if the epoch was not validated, which plateau does not count.
        """
        self.epoch += 1
        if self.plateau is None:
            self._set_lr()
        elif score is not None:
            self.plateau.step(score)

    def set_base_lr(self, lr: float) -> None:
        """Replace the base learning rate; a closed form continues at its current epoch.

        For plateau it becomes the current learning rate: earlier reductions are dropped.
        """
        self.base_lr = lr
        self._set_lr()

    def _set_lr(self) -> None:
        """Set the lr of every group: the base learning rate times the factor of the current epoch."""
        factor = 1.0 if self.plateau is not None else FACTORS[self.config.scheduler](self.epoch, self.config)
        lr = self.base_lr * factor
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], torch.Tensor):  # a CUDA graph reads it there
                group["lr"].fill_(lr)
            else:
                group["lr"] = lr

    def state_dict(self) -> dict[str, Any]:
        """Return what changes during a training; everything else follows from the config in use."""
        if self.plateau is None:
            return {"last_epoch": self.epoch}
        state = self.plateau.state_dict()
        return {name: state[name] for name in PLATEAU_STATE}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint's state, as state_dict returned it.

        A closed form sets the learning rate as if the options of the config in use had been those of all epochs. For
        plateau the learning rate is not set: it is part of the optimizer's state.
        """
        if self.plateau is not None:
            self.plateau.load_state_dict({name: state[name] for name in PLATEAU_STATE})
            return
        self.epoch = state["last_epoch"]
        self.set_base_lr(self.config.lr)
