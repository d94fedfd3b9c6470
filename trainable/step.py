"""One step of a training: forward and backward of its micro-batches, then the update; on a GPU from CUDA graphs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from trainable.inference import autocast

if TYPE_CHECKING:
    from trainable.training import Training

WARM_UP = 3  # micro-batches of a shape before it is captured: cudnn has then chosen its kernels


def micro_batch(training: Training, x: Tensor, y: Tensor, share: float) -> Tensor:
    """Add the gradient of a micro-batch; returns its total, base and Dice loss, (3,).

    x: (N, 4, D, H, W); y: (N, 3, D, H, W), 0 or 1. share: of the micro-batch in its step.
    """
    with autocast(training.config, training.device):
        heads = training.network(x)
    loss = training.loss(heads, y)
    training.scaler.scale(loss.total * share).backward()
    return torch.stack([part.detach() for part in loss])


def update(training: Training) -> Tensor:
    """Unscale, clip, update, zero. Returns the norm of the gradient before clipping.

    A step whose norm is not finite is skipped: it changes neither weights nor the optimizer's state.
    """
    parameters = list(training.network.parameters())
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    gradients[0].mul_(torch.where(norm.isfinite(), 1.0, math.nan))  # a norm may overflow where no element does
    norm = norm / training.scaler.scale(torch.ones_like(norm))
    training.scaler.unscale_(training.optimizer)
    if training.config.gradient_clipping:
        torch.nn.utils.clip_grads_with_norm_(parameters, training.config.gradient_clipping, norm)
    training.scaler.step(training.optimizer)
    training.scaler.update(None if training.scaled else 1.0)
    training.optimizer.zero_grad(set_to_none=True)
    return norm


class Steps:
    """micro_batch and update of a training, where it is `graphed` from CUDA graphs as soon as both have run.

    A graph is what the GPU did once, launched as one: small patches are otherwise bound by the launches. It holds for
    one shape and share; the steps of others, such as the last one of an epoch, run as they are written.
    """

    def __init__(self, training: Training) -> None:
        self.training = training
        self.seen: Counter[tuple[Any, ...]] = Counter()
        self.key: tuple[Any, ...] | None = None  # the shape and share that are captured
        self.replayed = 0  # micro-batches of the step under way
        self.memory = 0  # bytes that a captured step has allocated at most

    def micro_batch(self, x: Tensor, y: Tensor, share: float) -> Tensor:
        """As the function."""
        key = (x.shape, x.dtype, share)
        first = all(parameter.grad is None for parameter in self.training.network.parameters())
        if self.key is None and self.training.graphed and first and self.seen[key] >= WARM_UP:
            self.capture(x, y, share)
            self.key = key
        if key != self.key:
            self.seen[key] += 1
            return micro_batch(self.training, x, y, share)
        self.x.copy_(x)
        self.y.copy_(y)
        graph, losses = self.first if self.replayed == 0 else self.further
        graph.replay()
        self.replayed += 1
        return losses

    def update(self) -> Tensor:
        """As the function."""
        if not self.replayed:
            return update(self.training)
        self.replayed = 0
        graph, norm = self.last
        graph.replay()
        return norm

    def capture(self, x: Tensor, y: Tensor, share: float) -> None:
        """Record the graphs, on copies of x and y; nothing is computed yet."""
        training = self.training
        for group in training.optimizer.param_groups:  # what moves in a training must be read from the GPU
            group["lr"] = torch.tensor(float(group["lr"]), device=training.device)
            if "capturable" in group:
                group["capturable"] = True
        self.x, self.y = x.clone(), y.clone()
        torch.cuda.empty_cache()  # what ran before has left blocks of the same sizes
        torch.cuda.reset_peak_memory_stats(training.device)
        pool = torch.cuda.graph_pool_handle()
        self.first = captured(lambda: micro_batch(training, self.x, self.y, share), pool)
        if training.config.accumulation_steps > 1:  # these add to the gradient that the first has written
            self.further = captured(lambda: micro_batch(training, self.x, self.y, share), pool)
        self.last = captured(lambda: update(training), pool)
        self.memory = torch.cuda.max_memory_allocated(training.device)


def captured(work: Callable[[], Tensor], pool: Any) -> tuple[torch.cuda.CUDAGraph, Tensor]:
    """The graph of some work, and the tensor that it writes its result into."""
    graph = torch.cuda.CUDAGraph()
    # thread_local: the thread that pins batches goes on meanwhile
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        result = work()
    return graph, result
