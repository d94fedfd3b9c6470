"""A moving average of a network's weights over the steps of a training."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn


class WeightAverage:
    """The exponential moving average of a network's weights, as a network of its own.

    The average is over the last 1 / (1 - decay) steps or so; the decay of early steps is smaller, (1 + n) / (10 + n) in
    step n, so that the initial weights are forgotten soon. Instance norm keeps no statistics that would be averaged.

    Attributes:
        network: the averaged one, in eval mode.
        steps: number of steps in the average, int64, on the network's device.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.network: Any = copy.deepcopy(network).requires_grad_(False).eval()
        self.weights: list[Tensor] = list(self.network.parameters())
        self.trained: list[Tensor] = list(network.parameters())
        self.steps = torch.zeros((), dtype=torch.int64, device=self.weights[0].device)

    @torch.no_grad()
    def update(self, norm: Tensor) -> None:
        """Count the weights after a step, unless it was skipped; does not wait for the GPU, and can be captured.

        norm: of the step's gradient, a scalar; not finite for a skipped step.
        """
        done = norm.isfinite()
        self.steps += done
        decay = ((1 + self.steps) / (10 + self.steps)).clamp(max=self.decay)
        change = torch._foreach_sub(self.trained, self.weights)
        torch._foreach_mul_(change, torch.where(done, 1 - decay, 0.0))
        torch._foreach_add_(self.weights, change)

    @torch.no_grad()
    def restart(self, steps: int = 0) -> None:
        """Set the average to the network's weights. steps: number of steps that these have done."""
        torch._foreach_copy_(self.weights, self.trained)
        self.steps.fill_(steps)

    def load(self, weights: dict[str, Tensor], steps: int) -> None:
        """Continue from averaged weights, by name, and the number of steps in them."""
        self.network.load_state_dict(weights)
        self.steps.fill_(steps)
