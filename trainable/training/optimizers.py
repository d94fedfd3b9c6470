"""Optimizers by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from trainable.core.config import TrainConfig

Groups = list[dict[str, Any]]


def without_dynamo(kind: type[Optimizer]) -> Callable[..., Optimizer]:
    """Return a subclass of an optimizer class that does not import torch's compiler, which takes 2.5 s per process.

    torch excludes an optimizer's functions from compilation, and imports its compiler for that at their first call,
    unless an attribute of the function names the original. That attribute is set on torch's own functions, for this
    whole process; a version of torch that looks for another attribute imports as usual. `deterministic` and
    `gradient_checkpointing` import the compiler too.
    """
    # torch imported and a first optimizer step done, in a fresh process on a CPU: 2.9 s with this, 5.4 s without.
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
    """Return the optimizer of a config for a network that is on its device already.

    Weight decay acts on the weights of convolutions, not on biases and norms.
    """
    groups: Groups = [
        {"params": [p for p in network.parameters() if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in network.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    fused = next(network.parameters()).is_cuda
    optimizer = OPTIMIZERS[config.optimizer](groups, config, fused)
    if config.optimizer == "sgd":  # torch's fused SGD leaves them unset if its first step is skipped
        for parameter in network.parameters():
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer
