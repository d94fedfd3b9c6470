"""The training loop: train_one_epoch, validate, and fit, which runs them to the end."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from trainable.core.brats import Labels
from trainable.core.config import TrainConfig
from trainable.core.device import choose_device, kernel_selection
from trainable.core.errors import InputError
from trainable.core.workers import BackgroundWorker
from trainable.data.batches import Stopwatch, prefetch_to_device
from trainable.data.cache import CachedCase
from trainable.data.patches import PatchLoader
from trainable.data.prepare import Data
from trainable.evaluation.metrics import Scores, mean_scores
from trainable.evaluation.pictures import picture
from trainable.evaluation.validate import validate
from trainable.training import checkpoint
from trainable.training.epoch_result import EndReason, EpochResult, EpochStats, Pictures
from trainable.training.state import Save, TrainingState

NUM_PICTURES = 2  # validation cases that each validation draws


def seed_epoch(config: TrainConfig, epoch: int) -> None:
    """Seed torch's generators (dropout) from the epoch alone, so that a resumed training draws the same."""
    torch.manual_seed(int(np.random.SeedSequence([config.seed, epoch, 3]).generate_state(1)[0]))


class EpochMeter:
    """Sums over an epoch, kept on the device so that the GPU is not waited for."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.values = torch.zeros(6, device=device, dtype=torch.float64)
        self.memory, self.batches = 0, 0
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    def add_batch(self, losses: Tensor, patches: int) -> None:
        """Add the total, base and Dice loss of a micro-batch, (3,); one that is not finite is left out."""
        finite = losses.isfinite().all()
        self.values[:3] += torch.where(finite, losses, 0) * patches
        self.values[3] += finite * patches
        self.batches += 1
        if self.device.type == "cuda":
            self.memory += torch.cuda.memory_allocated(self.device)

    def add_step(self, norm: Tensor) -> None:
        """Add a step by the norm of its gradient; one that is not finite was skipped."""
        self.values[4] += torch.where(norm.isfinite(), norm, 0)
        self.values[5] += norm.isfinite()

    def stats(self, training: TrainingState, *, patches: int, seconds: float, wait: float) -> EpochStats:
        """The statistics of the epoch."""
        total, base, dice, finite, norms, steps = self.values.tolist()
        peak = (
            torch.cuda.max_memory_allocated(self.device) + training.steps.graph_pool_bytes
            if self.device.type == "cuda"
            else 0
        )
        return EpochStats(
            avg_total_loss=total / finite if finite else math.nan,
            avg_base_loss=base / finite if finite else math.nan,
            avg_dice_loss=dice / finite if finite else math.nan,
            grad_norm=norms / steps if steps else math.nan,
            steps=steps,
            lr=training.schedule.lr,
            epoch_time=seconds,
            avg_batch_time=seconds / self.batches,
            patches_per_second=patches / seconds,
            data_wait_share=wait / seconds,
            avg_gpu_memory=self.memory / self.batches / 2**20,
            max_gpu_memory=peak / 2**20,
        )


def train_one_epoch(
    training: TrainingState, loader: PatchLoader, check: Callable[[], object] = lambda: None
) -> EpochStats:
    """Train on one pass of patches; returns the epoch's statistics.

    Ends early where max_skipped_steps steps in a row had a gradient that is not finite; training.skipped tells. check
    is called before each micro-batch and may raise.
    """
    config, device = training.config, training.device
    training.network.train()
    seed_epoch(config, training.epoch)
    last = math.ceil(loader.patches / config.batch_size) - 1
    sums, cases, patches = EpochMeter(device), list[str](), 0
    lr = training.schedule.lr  # once: the GPU is waited for
    started = time.perf_counter()
    batches = Stopwatch(loader.epoch(training.epoch))
    for index, (places, x, y) in enumerate(prefetch_to_device(batches, config, device, training.epoch)):
        check()
        cases += loader.cases(places)
        losses = training.steps.forward_backward(x, y, micro_batch_weight(index, len(x), loader.patches, config))
        sums.add_batch(losses, len(x))
        patches += len(x)
        if (index + 1) % config.accumulation_steps == 0 or index == last:
            norm = training.steps.update()
            sums.add_step(norm)
            place = f"epoch {training.epoch + 1}, batch {index + 1} ({', '.join(cases)})"
            training.skipped.add(norm, f"{place} at lr {lr:.2e}")
            cases.clear()
            if training.skipped.too_many:
                break
    training.skipped.read()
    stats = sums.stats(training, patches=patches, seconds=time.perf_counter() - started, wait=batches.seconds)
    training.step += int(stats.steps)
    return stats


def micro_batch_weight(index: int, samples: int, patches: int, config: TrainConfig) -> float:
    """The share of a micro-batch in its step: accumulated means then equal the mean over all patches of the step.

    The last step of an epoch may have fewer patches than the others; it is divided by its own number.
    """
    step_size = config.batch_size * config.accumulation_steps
    before = index // config.accumulation_steps * step_size
    return samples / min(step_size, patches - before)


def fit(
    config: TrainConfig,
    data: Data,
    on_epoch_end: Callable[[EpochResult], None] = lambda _: None,
    on_start: Callable[[TrainingState], None] = lambda _: None,
    save: Save = checkpoint.save_checkpoint,
) -> EpochResult:
    """Train to the last epoch or until patience ends; returns the last epoch's result.

    Writes `latest.pth` each epoch, `best_model.pth` at each better validated `metric` and `epoch_NNNN.pth` every
    save_freq epochs into output_dir/checkpoints. Without validation cases the last epoch is the best. `on_epoch_end`
    is called after the checkpoints are on disk; what it raises ends the training, which can be resumed. Both are done
    in a thread of their own, behind the next epoch. `on_start` is called once, when all is checked and loaded and
    nothing is written yet. `save` writes the checkpoints; what is said here of files is of save_checkpoint.
    Only the train and val parts of the split are read.
    """
    folder = config.output_dir / "checkpoints"
    with kernel_selection(config):
        on_gpu = choose_device(config).type == "cuda"
        loader = PatchLoader(data.folder, data.split.train, config, pin_memory=on_gpu)
        if config.resume is None:
            loader.begin(0)  # while the network is drawn
        training = TrainingState(config)
        if config.resume is not None:
            source, state = checkpoint.load_latest_valid(config.resume)
            training.load_state(state, data)
            done = f"{source} has done {training.epoch} of {config.epochs} epochs"
            if training.epoch >= config.epochs:
                raise InputError(f"{done}; raise --epochs to go on")
            if training.out_of_patience:
                raise InputError(f"{done} and ended by patience of {config.patience}; raise --patience to go on")
            on_start(training)
            training.adopt_checkpoint(source.parent, folder)
        else:
            if config.pretrained is not None:
                print(checkpoint.load_pretrained(training.network, config.pretrained))
            on_start(training)
        with BackgroundWorker() as behind:
            while True:
                result, write = run_epoch(training, loader, data, folder, save, behind.check)
                behind.start(partial(save_and_report, result, write, on_epoch_end))
                del write  # it holds the state
                if result.end_reason:
                    return result


def save_and_report(
    result: EpochResult, write: Callable[[], None], on_epoch_end: Callable[[EpochResult], None]
) -> None:
    """Write an epoch's checkpoints, then tell of it."""
    write()
    on_epoch_end(result)


def run_epoch(
    training: TrainingState, loader: PatchLoader, data: Data, folder: Path, save: Save, check: Callable[[], object]
) -> tuple[EpochResult, Callable[[], None]]:
    """Train, validate where it is due, step the schedule; returns what was done, and what writes its checkpoints."""
    config = training.config
    stats = train_one_epoch(training, loader, check)
    training.epoch += 1
    val: Scores | None = None
    pictures: Pictures = {}
    end_reason, note = EndReason.NONE, ""

    def result() -> EpochResult:
        best = training.best_score, training.best_epoch
        return EpochResult(training.epoch, stats, val, *best, end_reason, folder, note, pictures)

    skipped, last = training.skipped, training.epoch == config.epochs
    if skipped.too_many:  # latest.pth stays that of the epoch before
        end_reason = EndReason.NON_FINITE
        note = f"the gradient was not finite in {skipped.in_a_row} steps in a row, the first in {skipped.first}"
        return result(), lambda: None
    if data.split.val and (training.epoch % config.val_freq == 0 or last):
        started = time.perf_counter()
        val, pictures = validate_epoch(training, data, check)
        stats = replace(stats, val_time=time.perf_counter() - started)
    better = training.update_best(val) if val or data.split.val else last
    training.schedule.step(val[config.metric.removeprefix("val_")] if val else None)
    if last or training.out_of_patience:
        end_reason = EndReason.EPOCHS if last else EndReason.PATIENCE
    return result(), training.saver(data, result().row(), folder, save, better=better)


def evenly_spaced(names: Sequence[str], count: int) -> list[str]:
    """So many of these names, evenly spread; all of them for 0 or where there are no more."""
    if not count or count >= len(names):
        return list(names)
    return [names[index * len(names) // count] for index in range(count)]


def validate_epoch(training: TrainingState, data: Data, check: Callable[[], object]) -> tuple[Scores, Pictures]:
    """Mean scores over val_cases of the validation cases, and pictures of the first; check is called after each."""
    pictures: Pictures = {}

    def on_case(case: CachedCase, prediction: Labels) -> None:
        check()
        if len(pictures) < NUM_PICTURES:
            pictures[case.name] = picture(case.image, case.label, prediction)

    names = evenly_spaced(data.split.val, training.config.val_cases)
    cases = validate(training.network, training.config, data.folder, names, on_case=on_case)
    return mean_scores(cases.values()), pictures
