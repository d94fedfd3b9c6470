"""The sum of the gradient over the processes that train together: once a step, all of it at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from trainable.core.ranks import sum_over_ranks


class GradientSum:
    """Adds up the gradient of a network over all ranks, in one exchange that a CUDA graph can contain.

    A request to end the training travels with it, so that all ranks see it at the same step without another exchange.

    Attributes:
        requests: the number of ranks that had requested the end when the last gradient was added up, a scalar.
    """

    def __init__(self, network: nn.Module) -> None:
        parameters = list(network.parameters())
        self.buffer = parameters[0].new_zeros(sum(parameter.numel() for parameter in parameters) + 1)
        self.requests = self.buffer[-1]
        self.own_request = torch.zeros_like(self.requests)
        self.views, first = list[Tensor](), 0
        for parameter in parameters:  # in the layout of the gradients, so that one kernel copies all of them
            self.views.append(self.buffer.as_strided(parameter.shape, parameter.stride(), first))
            first += parameter.numel()

    def request_end(self) -> None:
        """Request the end of the training in the exchanges that are still to be started."""
        self.own_request.fill_(1)

    @torch.no_grad()
    def add_up(self, gradients: Sequence[Tensor]) -> None:
        """Replace the gradients, one per parameter of the network, by their sums over all ranks."""
        torch._foreach_copy_(self.views, list(gradients))
        self.requests.copy_(self.own_request)
        sum_over_ranks(self.buffer)
        torch._foreach_copy_(list(gradients), self.views)
