"""One training step: forward and backward per micro-batch, then the update; on a GPU replayed from CUDA graphs."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import Optimizer

from trainable.core.config import TrainConfig
from trainable.core.device import AMP_DTYPES, autocast
from trainable.core.division import Part
from trainable.model.losses import Loss
from trainable.training.gradient_sum import GradientSum
from trainable.training.weight_average import WeightAverage

WARMUP_MICRO_BATCHES = 3  # micro-batches before a step is captured: all kernels are then chosen, compiled and loaded

# Of the heads' logits and the target, and if several processes share the micro-batch of the Part of it that these are.
LossFunction = Callable[..., Loss]
CapturedGraph = tuple[torch.cuda.CUDAGraph, Tensor]  # a graph, and the tensor that it writes its result into


def needs_loss_scale(config: TrainConfig, device: torch.device) -> bool:
    """Return whether gradients are computed in fp16, whose range is too small without a loss scale."""
    return config.amp == "fp16" and device.type == "cuda"


class TrainStep:
    """Trains a network: `forward_backward` per micro-batch, then one `update`.

    With `use_cuda_graphs` both are captured once they have run, and then replayed: a graph is what the GPU did once,
    launched as one, and small patches are otherwise limited by the launches. Steps of the full number of patches are
    replayed; others, such as the last one of an epoch, run eagerly.
    """

    def __init__(
        self,
        network: nn.Module,
        loss: LossFunction,
        optimizer: Optimizer,
        scaler: torch.amp.GradScaler,
        config: TrainConfig,
        average: WeightAverage | None = None,
        gradient_sum: GradientSum | None = None,
        micro_batches: int | None = None,
    ) -> None:
        self.average = average  # updated after each step
        self.gradient_sum = gradient_sum  # None for a process that trains alone
        self.micro_batches = micro_batches or config.accumulation_steps  # of a full step, in this process
        self.network, self.loss, self.optimizer, self.scaler, self.config = network, loss, optimizer, scaler, config
        self.device = next(network.parameters()).device
        self.scaled = needs_loss_scale(config, self.device)
        # Not with gradient checkpointing: it computes blocks again, which draws their dropout again, as no graph may,
        # and reads other weights than cast_conv_weights gave.
        self.use_cuda_graphs = config.fast and self.device.type == "cuda" and not config.gradient_checkpointing
        self.warmup_count = 0  # micro-batches of full steps that ran eagerly
        self.update_graph: CapturedGraph | None = None
        self.micro_batches_done = 0  # replayed micro-batches of the current step
        # Bytes that a captured step occupies while it runs, and that nothing else can use in the meantime.
        self.graph_pool_bytes = 0

    def forward_backward(self, x: Tensor, y: Tensor, loss_weight: float, part: Part | None = None) -> Tensor:
        """Add the gradient of a micro-batch; return its total, base and Dice loss, (3,), unweighted.

        With CUDA graphs the next call overwrites the returned tensor: use or copy it before that.

        Args:
            x: normalised image patches, (N, 4, D, H, W).
            y: targets per region, (N, 3, D, H, W), 0 or 1.
            loss_weight: weight of the micro-batch in its step.
            part: the samples of the micro-batch that x has, if several processes share it. The losses that are returned
                are of all of it, and the gradient is what these samples add to that of all.

        Raises:
            RuntimeError: if the GPU cannot hold this step as a CUDA graph; the message names the option `fast`.
        """
        config = self.config
        # With this weight its step is full, and so is every other micro-batch of it: no step is of both kinds.
        samples = len(x) if part is None else part.samples
        if not self.use_cuda_graphs or samples != config.batch_size or loss_weight != 1 / config.accumulation_steps:
            return self._forward_backward_eagerly(x, y, loss_weight, part)
        if self.update_graph is None:
            at_start_of_step = all(parameter.grad is None for parameter in self.network.parameters())
            if self.warmup_count < WARMUP_MICRO_BATCHES or not at_start_of_step:
                self.warmup_count += 1
                return self._forward_backward_eagerly(x, y, loss_weight, part)
            self._capture(x, y, loss_weight, part)
        self.x.copy_(x)
        self.y.copy_(y)
        graph, losses = self.graphs[min(self.micro_batches_done, 1)]
        graph.replay()
        self.micro_batches_done += 1
        return losses

    def update(self) -> Tensor:
        """Unscale and clip the gradient, update the weights, zero the gradient; return its norm before clipping.

        A step whose norm is not finite is skipped: it changes neither weights nor the optimizer's state. With CUDA
        graphs the next call overwrites the returned tensor, a scalar.
        """
        if not self.micro_batches_done or self.update_graph is None:
            return self._update_eagerly()
        self.micro_batches_done = 0
        graph, norm = self.update_graph
        graph.replay()
        return norm

    def _forward_backward_eagerly(self, x: Tensor, y: Tensor, loss_weight: float, part: Part | None) -> Tensor:
        """Do what forward_backward does, with each kernel launched from Python and not replayed from a graph."""
        cast_weights = self.use_cuda_graphs and self.config.amp != "off"
        weights = cast_conv_weights(self.network, AMP_DTYPES[self.config.amp]) if cast_weights else {}
        with autocast(self.config, self.device):
            heads = functional_call(self.network, weights, x) if weights else self.network(x)
        loss = self.loss(heads, y) if part is None else self.loss(heads, y, part)
        self.scaler.scale(loss.total * loss_weight).backward()
        return torch.stack([value.detach() for value in loss])

    def _update_eagerly(self) -> Tensor:
        """Do what update does, with each kernel launched from Python and not replayed from a graph."""
        parameters = list(self.network.parameters())
        gradients = [p.grad for p in parameters if p.grad is not None]
        if self.gradient_sum is not None:
            self.gradient_sum.add_up(gradients)
        norm = torch.nn.utils.get_total_norm(gradients)
        gradients[0].mul_(torch.where(norm.isfinite(), 1.0, math.nan))  # a norm may overflow though no element does
        norm = norm / self.scaler.scale(torch.ones_like(norm))
        self.scaler.unscale_(self.optimizer)
        if self.config.gradient_clipping:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.config.gradient_clipping, norm)
        self.scaler.step(self.optimizer)
        self.scaler.update(None if self.scaled else 1.0)
        if self.average is not None:
            self.average.update(norm)
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def _capture(self, x: Tensor, y: Tensor, loss_weight: float, part: Part | None) -> None:
        """Capture the graphs, on copies of x and y; nothing is computed yet."""
        for group in self.optimizer.param_groups:  # what changes during a training must be read from the GPU
            group["lr"] = torch.tensor(float(group["lr"]), device=self.device)
            if "capturable" in group:
                group["capturable"] = True
        self.x, self.y = x.clone(), y.clone()
        torch.cuda.empty_cache()  # the eager steps have left blocks of the same sizes
        torch.cuda.reset_peak_memory_stats(self.device)
        pool = torch.cuda.graph_pool_handle()
        micro_batch = partial(self._forward_backward_eagerly, self.x, self.y, loss_weight, part)
        # The first micro-batch of a step writes the gradient; the others, of the second graph, add to it.
        self.graphs = [capture_graph(micro_batch, pool) for _ in range(min(self.micro_batches, 2))]
        self.update_graph = capture_graph(self._update_eagerly, pool)
        self.graph_pool_bytes = torch.cuda.max_memory_allocated(self.device) - torch.cuda.memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)


def cast_conv_weights(network: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the weights and biases of the convolutions, except those of the heads, by name, cast to a dtype.

    One kernel casts all of them; autocast would launch one per weight.
    """
    weights = {
        f"{name}.{part}": weight
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv3d | nn.ConvTranspose3d) and not name.startswith("heads")  # which read float32
        for part, weight in module.named_parameters(recurse=False)
    }
    return dict(zip(weights, CastTensors.apply(dtype, *weights.values()), strict=True))


class CastTensors(torch.autograd.Function):
    """Casts tensors to another dtype, forward and backward in one kernel each."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return the tensors, which all have one dtype, cast to `dtype`; each keeps its memory layout."""
        ctx.dtype = tensors[0].dtype
        return CastTensors.cast(tensors, dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return None for `dtype`, then the gradients cast to the dtype that the tensors had."""
        return None, *CastTensors.cast(gradients, ctx.dtype)

    @staticmethod
    def cast(tensors: tuple[Tensor, ...], dtype: torch.dtype) -> tuple[Tensor, ...]:
        """Return copies of the tensors, cast to `dtype`."""
        copies = tuple(torch.empty_like(tensor, dtype=dtype) for tensor in tensors)
        torch._foreach_copy_(copies, tensors)
        return copies


def capture_graph(work: Callable[[], Tensor], pool: Any) -> CapturedGraph:
    """Capture some work without computing it; return its CUDA graph, and the tensor that the graph writes into.

    Args:
        work: launches kernels, and returns the tensor with their result.
        pool: handle of the memory that the graph allocates from.

    Raises:
        OutOfMemoryError: from torch, if the memory of the GPU does not suffice.
        RuntimeError: if the work cannot be captured.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.stream(capture_stream()):
        torch.cuda.synchronize()
        # Not torch.cuda.graph, which also frees the pinned memory that checkpoints and batches pass through.
        # thread_local: the threads that read batches pin memory meanwhile.
        graph.capture_begin(pool=pool, capture_error_mode="thread_local")
        try:
            result = work()
        except RuntimeError as error:
            with suppress(RuntimeError):  # it reports only that something went wrong before
                graph.capture_end()
            if isinstance(error, torch.OutOfMemoryError):
                raise
            card = torch.cuda.get_device_name()
            raise RuntimeError(f"{card} cannot hold this step as a CUDA graph: {error}; try `fast: false`") from error
        graph.capture_end()
    return graph, result


@lru_cache(1)
def capture_stream() -> torch.cuda.Stream:
    """Return the one stream on which this process captures graphs.

    It is kept because torch holds memory for every stream ever used.
    """
    return torch.cuda.Stream()
