"""One step of a training: forward and backward of its micro-batches, then the update; on a GPU from CUDA graphs."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from trainable.core.device import AMP_DTYPES, autocast

if TYPE_CHECKING:
    from trainable.training.state import TrainingState

WARMUP_MICRO_BATCHES = 3  # micro-batches before a step is captured: all kernels are then chosen, compiled and loaded


def forward_backward(training: TrainingState, x: Tensor, y: Tensor, loss_weight: float) -> Tensor:
    """Add the gradient of a micro-batch; returns its total, base and Dice loss, (3,).

    x: (N, 4, D, H, W); y: (N, 3, D, H, W), 0 or 1. share: of the micro-batch in its step.
    """
    weights = cast_conv_weights(training) if training.use_cuda_graphs and training.config.amp != "off" else {}
    with autocast(training.config, training.device):
        heads = functional_call(training.network, weights, x) if weights else training.network(x)
    loss = training.loss(heads, y)
    training.scaler.scale(loss.total * loss_weight).backward()
    return torch.stack([part.detach() for part in loss])


def cast_conv_weights(training: TrainingState) -> dict[str, Tensor]:
    """The convolutions' weights by name, in the precision of autocast, which would turn each by a kernel of its own."""
    weights = {
        f"{name}.{part}": weight
        for name, module in training.network.named_modules()
        if isinstance(module, nn.Conv3d | nn.ConvTranspose3d) and not name.startswith("heads")  # which read float32
        for part, weight in module.named_parameters(recurse=False)
    }
    return dict(zip(weights, CastTensors.apply(AMP_DTYPES[training.config.amp], *weights.values()), strict=True))


class CastTensors(torch.autograd.Function):
    """Tensors in another dtype, forward and backward all in one kernel."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The tensors, all of one dtype, in this one, in the layout that each has."""
        ctx.dtype = tensors[0].dtype
        return CastTensors.cast(tensors, dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients in the dtype of the tensors."""
        return None, *CastTensors.cast(gradients, ctx.dtype)

    @staticmethod
    def cast(tensors: tuple[Tensor, ...], dtype: torch.dtype) -> tuple[Tensor, ...]:
        """Copies in another dtype."""
        copies = tuple(torch.empty_like(tensor, dtype=dtype) for tensor in tensors)
        torch._foreach_copy_(copies, tensors)
        return copies


def update(training: TrainingState) -> Tensor:
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


class TrainStep:
    """forward_backward and update of a training, where it is `use_cuda_graphs` from CUDA graphs as soon as both have run.

    A graph is what the GPU did once, launched as one: small patches are otherwise bound by the launches. Steps of the
    full number of patches are replayed; others, such as the last one of an epoch, run as they are written.
    """

    def __init__(self, training: TrainingState) -> None:
        self.training = training
        self.warmup_count = 0  # micro-batches of full steps that ran as they are written
        self.update_graph: tuple[torch.cuda.CUDAGraph, Tensor] | None = None  # the captured update
        self.micro_batches_done = 0  # micro-batches of the step under way
        self.graph_pool_bytes = (
            0  # bytes that a captured step takes while it runs, and that nothing else can have meanwhile
        )

    def forward_backward(self, x: Tensor, y: Tensor, loss_weight: float) -> Tensor:
        """As the function."""
        training, config = self.training, self.training.config
        # With this share its step is full, and so is every other micro-batch of it: no step is of both kinds.
        if not training.use_cuda_graphs or len(x) != config.batch_size or loss_weight != 1 / config.accumulation_steps:
            return forward_backward(training, x, y, loss_weight)
        if self.update_graph is None:
            begins = all(parameter.grad is None for parameter in training.network.parameters())
            if self.warmup_count < WARMUP_MICRO_BATCHES or not begins:
                self.warmup_count += 1
                return forward_backward(training, x, y, loss_weight)
            self.capture(x, y, loss_weight)
        self.x.copy_(x)
        self.y.copy_(y)
        graph, losses = self.first if self.micro_batches_done == 0 else self.further
        graph.replay()
        self.micro_batches_done += 1
        return losses

    def update(self) -> Tensor:
        """As the function."""
        if not self.micro_batches_done or self.update_graph is None:
            return update(self.training)
        self.micro_batches_done = 0
        graph, norm = self.update_graph
        graph.replay()
        return norm

    def capture(self, x: Tensor, y: Tensor, share: float) -> None:
        """Record the graphs, on copies of x and y; nothing is computed yet."""
        training, device = self.training, self.training.device
        for group in training.optimizer.param_groups:  # what moves in a training must be read from the GPU
            group["lr"] = torch.tensor(float(group["lr"]), device=device)
            if "capturable" in group:
                group["capturable"] = True
        self.x, self.y = x.clone(), y.clone()
        torch.cuda.empty_cache()  # what ran before has left blocks of the same sizes
        torch.cuda.reset_peak_memory_stats(device)
        pool = torch.cuda.graph_pool_handle()
        self.first = capture_graph(lambda: forward_backward(training, self.x, self.y, share), pool)
        if training.config.accumulation_steps > 1:  # these add to the gradient that the first has written
            self.further = capture_graph(lambda: forward_backward(training, self.x, self.y, share), pool)
        self.update_graph = capture_graph(lambda: update(training), pool)
        self.graph_pool_bytes = torch.cuda.max_memory_allocated(device) - torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)


def capture_graph(work: Callable[[], Tensor], pool: Any) -> tuple[torch.cuda.CUDAGraph, Tensor]:
    """The graph of some work, and the tensor that it writes its result into."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.stream(capture_stream()):
        torch.cuda.synchronize()
        # Not torch.cuda.graph, which also lets go of the pinned memory that checkpoints and batches pass through.
        # thread_local: the threads that read batches pin memory meanwhile
        graph.capture_begin(pool=pool, capture_error_mode="thread_local")
        try:
            result = work()
        except RuntimeError as error:
            with suppress(RuntimeError):  # it says only that something went wrong before
                graph.capture_end()
            if isinstance(error, torch.OutOfMemoryError):
                raise
            card = torch.cuda.get_device_name()
            raise RuntimeError(f"{card} cannot hold this step as a CUDA graph: {error}; try `fast: false`") from error
        graph.capture_end()
    return graph, result


@lru_cache(1)
def capture_stream() -> torch.cuda.Stream:
    """The stream that steps are captured on in this process: torch keeps memory for each stream that was ever used."""
    return torch.cuda.Stream()
