"""The training loop: train one epoch, validate, save, until the last epoch or until patience ends."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from trainable.core.config import TrainConfig
from trainable.core.device import choose_device, kernel_selection
from trainable.core.errors import InputError
from trainable.core.logger import logger
from trainable.data.batches import TimedIterator, prefetch_to_device
from trainable.data.patches import PatchLoader
from trainable.data.prepare import Data
from trainable.evaluation.inference import NonFiniteLogitsError
from trainable.evaluation.metrics import Scores, mean_scores
from trainable.training.case_scores import case_rows
from trainable.training.checkpoint import load_latest_valid, load_pretrained
from trainable.training.checkpoint_manager import CheckpointManager
from trainable.training.epoch_result import EndReason, EpochResult, EpochStats, Pictures
from trainable.training.seen_cases import history_of_pretrained
from trainable.training.state import TrainingState
from trainable.training.step_progress import OnProgress, ProgressReporter
from trainable.training.validation import validate_epoch


def seed_epoch(config: TrainConfig, epoch: int) -> None:
    """Seed torch's generators (dropout) from `seed` and an epoch, from 0, so that a resumed training draws the same."""
    torch.manual_seed(int(np.random.SeedSequence([config.seed, epoch, 3]).generate_state(1)[0]))


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
        """Add the total, base and Dice loss of a micro-batch, (3,), unless one of the three is not finite."""
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
        """Return the statistics of the epoch.

        Args:
            training: after the epoch; read for lr and the memory of its CUDA graphs.
            patches: number of patches that were trained on.
            seconds: duration of the epoch.
            wait: seconds of it that were spent waiting for data.
        """
        total, base, dice, finite_patches, grad_norms, steps = self.sums.tolist()
        peak = (
            torch.cuda.max_memory_allocated(self.device) + training.train_step.graph_pool_bytes
            if self.device.type == "cuda"
            else 0
        )
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
            data_wait_share=wait / seconds,
            avg_gpu_memory=self.memory / self.batches / 2**20,
            max_gpu_memory=peak / 2**20,
        )


def train_one_epoch(
    training: TrainingState,
    loader: PatchLoader,
    check: Callable[[], object] = lambda: None,
    progress: ProgressReporter | None = None,
) -> EpochStats:
    """Train on the patches of epoch `training.epoch`, counted from 0; return the epoch's statistics.

    The epoch ends early, with training.skipped.too_many True, if the gradient was not finite in max_skipped_steps steps
    in a row. training.step grows by the steps that were not skipped; training.epoch stays. check is called before
    each micro-batch is trained on; what it raises ends the epoch. progress is told of each step.
    """
    progress = progress or ProgressReporter()
    config, device = training.config, training.device
    training.network.train()
    seed_epoch(config, training.epoch)
    last = math.ceil(loader.patches / config.batch_size) - 1
    steps = last // config.accumulation_steps + 1
    meter, cases, patches = EpochMeter(device), list[str](), 0
    lr = training.schedule.lr  # read once: it waits for the GPU
    started = time.perf_counter()
    progress.step(training.epoch + 1, 0, steps, 0, started)
    batches = TimedIterator(loader.epoch(training.epoch))
    for index, (case_indices, x, y) in enumerate(prefetch_to_device(batches, config, device, training.epoch)):
        check()
        cases += loader.case_names(case_indices)
        weight = micro_batch_weight(index, len(x), loader.patches, config)
        losses = training.train_step.forward_backward(x, y, weight)
        meter.add_batch(losses, len(x))
        patches += len(x)
        if (index + 1) % config.accumulation_steps == 0 or index == last:
            norm = training.train_step.update()
            meter.add_step(norm)
            location = f"epoch {training.epoch + 1}, batch {index + 1} ({', '.join(cases)})"
            training.skipped.add(norm, f"{location} at lr {lr:.2e}")
            cases.clear()
            progress.step(training.epoch + 1, index // config.accumulation_steps + 1, steps, patches, started)
            if training.skipped.too_many:
                break
    training.skipped.read()
    stats = meter.stats(training, patches=patches, seconds=time.perf_counter() - started, wait=batches.seconds)
    training.step += int(stats.steps)
    return stats


def micro_batch_weight(index: int, samples: int, patches: int, config: TrainConfig) -> float:
    """Return the weight of a micro-batch's mean loss in its step.

    The weighted means of a step's micro-batches sum to the mean over the step's patches, also in the last step of an
    epoch, which may have fewer patches than the others.

    Args:
        index: of the micro-batch in the epoch, from 0.
        samples: number of patches in the micro-batch.
        patches: number of patches in the epoch.
    """
    step_size = config.batch_size * config.accumulation_steps
    before = index // config.accumulation_steps * step_size
    return samples / min(step_size, patches - before)


def fit(
    config: TrainConfig,
    data: Data,
    on_epoch_end: Callable[[EpochResult], None] = lambda _: None,
    on_start: Callable[[TrainingState], None] = lambda _: None,
    *,
    on_progress: OnProgress | None = None,
    flush: bool = True,
    one_file: bool = False,
) -> EpochResult:
    """Train until the last epoch, until patience ends or until it diverges; return the last epoch's result.

    Writes `latest.pth` each epoch, `best_model.pth` at each better validated `metric` and `epoch_NNNN.pth` every
    save_freq epochs into output_dir/checkpoints; nothing for an epoch in which it diverges, whose end_reason is
    NON_FINITE. Without validation cases the last epoch is the best. The test cases are not read.

    Args:
        config: all options; `resume` names the checkpoint to continue from, None for a new training.
        data: the prepared cases and their split.
        on_epoch_end: called with each epoch's result after the epoch's checkpoints are written, in a background thread
            while the next epoch trains. An exception from it stops the training, which can be resumed, and is raised
            here.
        on_start: called once, when everything is checked and loaded and nothing is written yet.
        on_progress: called with the progress within an epoch, see ProgressReporter.
        flush, one_file: how checkpoints are written, see CheckpointManager.

    Raises:
        InputError: if the training cannot be resumed with these options, or has ended already; or if the device or the
            file of `resume` or `pretrained` cannot be used.
    """
    with kernel_selection(config):
        on_gpu = choose_device(config).type == "cuda"
        loader = PatchLoader(data.folder, data.split.train, config, pin_memory=on_gpu)
        loader.expect(data.contents)
        if config.resume is None:
            loader.begin(0)  # while the network's weights are drawn
        training = TrainingState(config)
        with CheckpointManager(config, flush=flush, one_file=one_file) as checkpoints:
            if config.resume is not None:
                resume_training(training, data, checkpoints, on_start)
            else:
                begin_training(training, data, on_start)
            progress = ProgressReporter(on_progress)
            while True:
                result = run_epoch(training, loader, data, checkpoints, on_epoch_end, progress)
                if result.end_reason:
                    return result


def begin_training(training: TrainingState, data: Data, on_start: Callable[[TrainingState], None]) -> None:
    """Load the weights of the option `pretrained`, if given, and call on_start.

    Raises:
        InputError: if the weights cannot be used, or have seen val or test cases without allow_seen_cases.
    """
    training.history = history_of_pretrained(training.config, data)
    if training.config.pretrained is not None:
        logger.info(load_pretrained(training.network, training.config.pretrained))
        if training.average:
            training.average.restart()
    on_start(training)


def resume_training(
    training: TrainingState,
    data: Data,
    checkpoints: CheckpointManager,
    on_start: Callable[[TrainingState], None],
) -> None:
    """Load the checkpoint of the option `resume`, call on_start, then have `checkpoints` adopt the loaded files.

    The next validation counts as the best if the best model is missing or not the one that the checkpoint names.

    Raises:
        InputError: if the checkpoint cannot be used, does not fit the options or the split, or the training has ended
            already. on_start was not called then, and nothing is written.
    """
    config = training.config
    assert config.resume is not None
    source, state = load_latest_valid(config.resume)
    training.load_state(state, data)
    done = f"{source} has done {training.epoch} of {config.epochs} epochs"
    if training.epoch >= config.epochs:
        raise InputError(f"{done}; raise --epochs to go on")
    if training.out_of_patience:
        raise InputError(f"{done} and ended by patience of {config.patience}; raise --patience to go on")
    on_start(training)
    if not checkpoints.adopt(source, state):
        training.reset_best()


def run_epoch(
    training: TrainingState,
    loader: PatchLoader,
    data: Data,
    checkpoints: CheckpointManager,
    on_epoch_end: Callable[[EpochResult], None],
    progress: ProgressReporter,
) -> EpochResult:
    """Train an epoch, validate if it is due, step the schedule, save; return what the epoch did.

    An epoch with too many skipped steps in a row is neither validated nor saved, and one whose validation meets logits
    that are not finite is not saved. on_epoch_end gets the result in the background, perhaps after this function has
    returned.
    """
    config = training.config
    stats = train_one_epoch(training, loader, checkpoints.check, progress)
    training.epoch += 1
    if training.skipped.too_many:
        skipped = training.skipped
        note = f"the gradient was not finite in {skipped.in_a_row} steps in a row, the first in {skipped.first}"
        return end_diverged(training, stats, note, checkpoints, on_epoch_end)
    is_last = training.epoch == config.epochs
    val: Scores | None = None
    cases: dict[str, Scores] = {}
    pictures: Pictures = {}
    if data.split.val and (training.epoch % config.val_freq == 0 or is_last):
        started = time.perf_counter()
        try:
            cases, pictures = validate_epoch(training, data, checkpoints.check, progress)
        except NonFiniteLogitsError as error:
            note = f"the validation of epoch {training.epoch} met {error}"
            return end_diverged(training, stats, note, checkpoints, on_epoch_end)
        val, stats = mean_scores(cases.values()), replace(stats, val_time=time.perf_counter() - started)
    is_best = training.update_best(val) if data.split.val else is_last
    training.schedule.step(val[config.metric.removeprefix("val_")] if val else None)
    end_reason = EndReason.EPOCHS if is_last else EndReason.PATIENCE if training.out_of_patience else EndReason.NONE
    best = training.best_score, training.best_epoch
    folder = checkpoints.dir.checkpoints
    result = EpochResult(training.epoch, stats, val, *best, end_reason, folder, pictures=pictures, case_scores=cases)
    state = training.state(data, result.row(), case_rows(training.epoch, cases))
    checkpoints.save(state, is_best=is_best, on_written=partial(on_epoch_end, result))
    return result


def end_diverged(
    training: TrainingState,
    stats: EpochStats,
    note: str,
    checkpoints: CheckpointManager,
    on_epoch_end: Callable[[EpochResult], None],
) -> EpochResult:
    """Return the result of an epoch in which a training diverged, and have on_epoch_end get it in the background.

    Nothing is saved, so that latest.pth stays that of the epoch before. note: what was not finite, in words.
    """
    best, folder = (training.best_score, training.best_epoch), checkpoints.dir.checkpoints
    result = EpochResult(training.epoch, stats, None, *best, EndReason.NON_FINITE, folder, note)
    checkpoints.call_after_writing(partial(on_epoch_end, result))
    return result
