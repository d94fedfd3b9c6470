"""One epoch of training: its steps, and their statistics."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from trainable.core.config import TrainConfig
from trainable.core.ranks import gather, rank, sum_over_ranks
from trainable.data.batches import TimedIterator, prefetch_to_device
from trainable.data.patches import PatchLoader
from trainable.training.agreed_end import AgreedEnd
from trainable.training.epoch_result import EpochStats
from trainable.training.state import TrainingState
from trainable.training.step_progress import ProgressReporter


def seed_epoch(config: TrainConfig, epoch: int) -> None:
    """Seed torch's generators (dropout) from `seed` and an epoch, from 0, so that a resumed training draws the same.

    Of several processes each draws something else.
    """
    words = [config.seed, epoch, 3, *[rank()] * (rank() > 0)]
    torch.manual_seed(int(np.random.SeedSequence(words).generate_state(1)[0]))


class EpochMeter:
    """Sums over an epoch, kept on the device so that the GPU is not waited for."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        # One tensor, read in one transfer; the names below are views of it, in the order in which stats() unpacks it.
        self.sums = torch.zeros(6, device=device, dtype=torch.float64)
        self.losses = self.sums[:3]  # total, base, Dice: each times the number of patches
        self.finite_patches, self.grad_norms, self.steps = self.sums[3:].unbind()
        self.memory, self.batches = 0, 0
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    def add_batch(self, losses: Tensor, patches: int) -> None:
        """Add the total, base and Dice loss of a micro-batch, (3,), unless one of the three is not finite.

        patches: of the micro-batch; 0 if another process counts it.
        """
        finite = losses.isfinite().all()
        self.losses += torch.where(finite, losses, 0) * patches
        self.finite_patches += finite * patches
        self.batches += 1
        if self.device.type == "cuda":
            self.memory += torch.cuda.memory_allocated(self.device)

    def add_step(self, norm: Tensor) -> None:
        """Add a step by the norm of its gradient; a step whose norm is not finite was skipped, and is left out."""
        self.grad_norms += torch.where(norm.isfinite(), norm, 0)
        self.steps += norm.isfinite()

    def stats(self, training: TrainingState, *, patches: int, seconds: float, wait: float) -> EpochStats:
        """Return the statistics of the epoch, over all processes.

        Args:
            training: after the epoch; read for lr and the memory of its CUDA graphs.
            patches: number of patches that were trained on.
            seconds: duration of the epoch.
            wait: seconds of it that were spent waiting for data.
        """
        sum_over_ranks(self.sums[:4])  # the others are those of the step, the same in each process
        total, base, dice, finite_patches, grad_norms, steps = self.sums.tolist()
        peak = (
            torch.cuda.max_memory_allocated(self.device) + training.train_step.graph_pool_bytes
            if self.device.type == "cuda"
            else 0
        )
        waits, memories, peaks = zip(*gather((wait, self.memory / self.batches, peak)), strict=True)
        return EpochStats(
            avg_total_loss=total / finite_patches if finite_patches else math.nan,
            avg_base_loss=base / finite_patches if finite_patches else math.nan,
            avg_dice_loss=dice / finite_patches if finite_patches else math.nan,
            grad_norm=grad_norms / steps if steps else math.nan,
            steps=steps,
            lr=training.schedule.lr,
            epoch_time=seconds,
            avg_batch_time=seconds / self.batches,
            patches_per_second=patches / seconds,
            data_wait_share=max(waits) / seconds,
            avg_gpu_memory=statistics.mean(memories) / 2**20,
            max_gpu_memory=max(peaks) / 2**20,
        )


def train_one_epoch(
    training: TrainingState,
    loader: PatchLoader,
    check: Callable[[], object] = lambda: None,
    progress: ProgressReporter | None = None,
    end: AgreedEnd | None = None,
) -> EpochStats:
    """Train on the patches of epoch `training.epoch`, counted from 0; return the epoch's statistics.

    The epoch ends early, with training.skipped.too_many True, if the gradient was not finite in max_skipped_steps steps
    in a row. training.step grows by the steps that were not skipped; training.epoch stays. check is called before
    each micro-batch is trained on; what it raises ends the epoch. progress is told of each step. end: by which several
    processes end the epoch together, with KeyboardInterrupt.
    """
    progress, end = progress or ProgressReporter(), end or AgreedEnd()
    config, device = training.config, training.device
    training.network.train()
    seed_epoch(config, training.epoch)
    steps = sum(share.ends_step for share in loader.shares)
    meter, patches, done = EpochMeter(device), 0, 0
    lr = training.schedule.lr  # read once: it waits for the GPU
    started = time.perf_counter()
    progress.step(training.epoch + 1, 0, steps, 0, started)
    batches = TimedIterator(loader.epoch(training.epoch))
    prepared = prefetch_to_device(batches, config, device, training.epoch)
    for share, (x, y) in zip(loader.shares, prepared, strict=True):
        check()
        part = share.part if training.parts_micro_batches else None
        losses = training.train_step.forward_backward(x, y, share.weight, part)
        meter.add_batch(losses, share.counted)
        if share.ends_step:
            patches, done = share.step.stop, done + 1
            norm = finish_step(training, end)
            meter.add_step(norm)
            cases = loader.case_names(training.epoch, share.step)
            batch = math.ceil(patches / config.batch_size)
            location = f"epoch {training.epoch + 1}, batch {batch} ({', '.join(cases)})"
            training.skipped.add(norm, f"{location} at lr {lr:.2e}")
            progress.step(training.epoch + 1, done, steps, patches, started)
            if training.skipped.too_many:
                break
    training.skipped.read()
    end.read()
    stats = meter.stats(training, patches=patches, seconds=time.perf_counter() - started, wait=batches.seconds)
    training.step += int(stats.steps)
    return stats


def finish_step(training: TrainingState, end: AgreedEnd) -> Tensor:
    """Update the weights; return the norm of the gradient. If several processes are to end, raise KeyboardInterrupt."""
    if training.gradient_sum is None:
        return training.train_step.update()
    if end.requested:
        training.gradient_sum.request_end()
    norm = training.train_step.update()
    end.add_step(training.gradient_sum.requests)
    return norm
