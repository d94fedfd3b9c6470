"""The training loop: train one epoch, validate, save, until the last epoch or until patience ends."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from trainable.core.config import TrainConfig
from trainable.core.device import choose_device, kernel_selection
from trainable.core.errors import InputError
from trainable.core.logger import logger
from trainable.core.ranks import from_main, is_main
from trainable.data.patches import PatchLoader
from trainable.data.prepare import Data
from trainable.evaluation.inference import NonFiniteLogitsError
from trainable.evaluation.metrics import Scores, mean_scores
from trainable.training.agreed_end import AgreedEnd
from trainable.training.case_scores import case_rows
from trainable.training.checkpoint import load_latest_valid, load_pretrained
from trainable.training.checkpoint_manager import CheckpointManager
from trainable.training.epoch_result import EndReason, EpochResult, EpochStats, Pictures
from trainable.training.seen_cases import history_of_pretrained
from trainable.training.state import TrainingState
from trainable.training.step_progress import OnProgress, ProgressReporter
from trainable.training.train_epoch import train_one_epoch
from trainable.training.validation import validate_epoch


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

    Of several processes that train together each must call this; rank 0 alone writes and calls the functions below.

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
        with AgreedEnd() as end, CheckpointManager(config, flush=flush, one_file=one_file) as checkpoints:
            if config.resume is not None:
                resume_training(training, data, checkpoints, on_start)
            else:
                begin_training(training, data, on_start)
            progress = ProgressReporter(on_progress)
            while True:
                result = run_epoch(training, loader, data, checkpoints, on_epoch_end, progress, end)
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
    if is_main():
        on_start(training)


def resume_training(
    training: TrainingState,
    data: Data,
    checkpoints: CheckpointManager,
    on_start: Callable[[TrainingState], None],
) -> None:
    """Load the checkpoint of the option `resume`, call on_start, then have `checkpoints` adopt the loaded files.

    The next validation counts as the best if there is no checkpoint any more of the epoch that was.

    Raises:
        InputError: if the checkpoint cannot be used, does not fit the options or the split, or the training has ended
            already. on_start was not called then, and nothing is written.
    """
    config = training.config
    assert config.resume is not None
    # rank 0 reads it for all, as a trial's checkpoint is on the disk of its first node only
    source, state = from_main(load_latest_valid(config.resume) if is_main() else (config.resume, {}))
    training.load_state(state, data)
    done = f"{source} has done {training.epoch} of {config.epochs} epochs"
    if training.epoch >= config.epochs:
        raise InputError(f"{done}; raise --epochs to go on")
    if training.out_of_patience:
        raise InputError(f"{done} and ended by patience of {config.patience}; raise --patience to go on")
    if is_main():
        on_start(training)
    if not from_main(is_main() and checkpoints.adopt(source, training.with_options(state))):
        training.reset_best()


def run_epoch(
    training: TrainingState,
    loader: PatchLoader,
    data: Data,
    checkpoints: CheckpointManager,
    on_epoch_end: Callable[[EpochResult], None],
    progress: ProgressReporter,
    end: AgreedEnd,
) -> EpochResult:
    """Train an epoch, validate if it is due, step the schedule, save; return what the epoch did.

    An epoch with too many skipped steps in a row is neither validated nor saved, and one whose validation meets logits
    that are not finite is not saved. on_epoch_end gets the result in the background, perhaps after this function has
    returned.
    """
    config = training.config
    stats = train_one_epoch(training, loader, checkpoints.check, progress, end)
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
            cases, pictures = validate_epoch(training, data, checkpoints.check, progress, end)
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
    if is_main():
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
    if is_main():
        checkpoints.call_after_writing(partial(on_epoch_end, result))
    return result
