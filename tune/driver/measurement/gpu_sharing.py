"""Trials that share a GPU: how fast several train at the same time, and how many are to."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from trainable.core.config import TrainConfig
from trainable.core.device import kernel_selection, to_network_format
from trainable.core.errors import InputError
from trainable.core.options import make_config
from trainable.evaluation.inference import predict_logits
from trainable.training.state import TrainingState
from tune.driver.measurement.parallel_processes import ProcessFailed, WaitForAll, run_together
from tune.driver.processes.gpu_share import missing_gpu, share_memory

VALIDATED_SHAPE = (240, 240, 155)  # voxels of a BraTS case
WARMUP_STEPS, MEASURE_SECONDS = 8, 3.0
TIMEOUT_SECONDS = 600  # of one measurement, with the start of its processes
MEMORY_MARGIN = 0.9  # a trial holds batches besides those of its steps
COUNTS = (1, 2, 4, 8)  # numbers of trials per GPU that are tried
MIN_SPEEDUP = 1.1  # that twice as many trials must bring


def measure_sharing(recipe: dict[str, Any], max_processes: int) -> dict[int, float]:
    """Measure a recipe in 1, 2, 4, 8 processes on this GPU, until more do not fit or bring little.

    Args:
        recipe: a TrainConfig as plain values.
        max_processes: processes to try at most; one is always tried.

    Returns:
        Patches per second of all processes together, by the number of processes; empty if not even one fits.

    Raises:
        InputError: if torch sees no GPU here.
        RuntimeError: if a single process fails for another reason than memory.
    """
    if recipe.get("device") == "cuda" and (missing := missing_gpu(1)):
        raise InputError(missing)
    rates: dict[int, float] = {}
    for count in COUNTS:
        if count > max(1, max_processes):
            break
        rate = measure_concurrent(recipe, count)
        if rate is None:
            break
        rates[count] = rate
        if best_count(rates) != count:
            break
    return rates


def best_count(rates: dict[int, float]) -> int:
    """Return how many trials are to share a GPU, given measure_sharing's rates.

    1, also without rates, unless a larger number is MIN_SPEEDUP times as fast as the best smaller one.
    """
    best = 1
    for count, rate in sorted(rates.items()):
        if rate >= MIN_SPEEDUP * rates[best]:
            best = count
    return best


def measure_concurrent(recipe: dict[str, Any], count: int) -> float | None:
    """Return the patches per second of `count` processes together; None if they do not fit into the GPU.

    Several processes do not fit if one of them has any error.

    Raises:
        RuntimeError: if a single process fails for another reason than memory, with the end of its traceback.
    """
    try:
        return sum(run_together(partial(measure_process, recipe), [1 / count] * count, TIMEOUT_SECONDS))
    except ProcessFailed as error:
        # One process went well before: several do not fit, whichever error that causes.
        if count > 1 or error.error_type == DoesNotFit.__name__:
            return None
        raise RuntimeError("a trial could not be tried out: " + str(error)[-2000:]) from None


class DoesNotFit(Exception):
    """The recipe needs more than its share of the GPU's memory."""


def measure_process(recipe: dict[str, Any], share: float, wait_for_all: WaitForAll) -> float:
    """Train in this process, at the same time as the other processes; return its own patches per second.

    Raises:
        DoesNotFit: if a step or a validation needs more than MEMORY_MARGIN of this share of the GPU's memory.
    """
    config = make_config(recipe, "sharing")
    torch.set_num_threads(1)
    share_memory(share * MEMORY_MARGIN)
    with kernel_selection(config):
        try:
            step = prepare_step(config)
        except torch.cuda.OutOfMemoryError as error:
            raise DoesNotFit(str(error)) from None
        wait_for_all()
        steps, started = 0, time.perf_counter()
        while time.perf_counter() - started < MEASURE_SECONDS:
            step()
            steps += 1
        seconds = time.perf_counter() - started
    return steps * config.accumulation_steps * config.batch_size / seconds


def prepare_step(config: TrainConfig) -> Callable[[], None]:
    """Return a function that trains one step of random patches; warmed up by some steps and, on a GPU, a validation."""
    training = TrainingState(config)
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(config.batch_size, 4, *config.target_shape, generator=draw).to(training.device)
    y = torch.rand(config.batch_size, 3, *config.target_shape, generator=draw).to(training.device) > 0.9

    def step() -> None:
        for _ in range(config.accumulation_steps):
            training.train_step.forward_backward(to_network_format(x, config), y, 1 / config.accumulation_steps)
        norm = training.train_step.update()
        norm.isfinite().item()  # waits for the device

    training.network.train()
    for _ in range(WARMUP_STEPS):
        step()
    if training.device.type == "cuda":  # a trial also validates
        predict_logits(training.network, torch.zeros(1, 4, *VALIDATED_SHAPE, device=training.device), config)
        training.network.train()
    return step
