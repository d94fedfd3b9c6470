"""The training loop: train_one_epoch, validate, and fit, which runs them to the end."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainable import checkpoint
from trainable.batches import Stopwatch, made_beside
from trainable.cache import CachedCase, open_case
from trainable.config import InputError, TrainConfig
from trainable.data import Data
from trainable.inference import predict_label
from trainable.logs import picture
from trainable.metrics import Labels, Scores, dice_scores, mean_scores, score_case, spacing_of
from trainable.parallel import Behind
from trainable.patches import PatchLoader
from trainable.training import Row, Save, Training, choose_device

Pictures = dict[str, NDArray[np.uint8]]

PICTURED = 2  # validation cases that each validation draws


@dataclass(frozen=True)
class EpochResult:
    """What one epoch did.

    epoch: how many epochs are done, from 1. stats: the training's statistics. val: mean scores over the validation
    cases, or None where the epoch was not validated. end_reason: "" while the training goes on, else "epochs",
    "patience" or "non_finite"; note: the last in words. checkpoints: the folder that they are written into.
    pictures: RGB uint8 (height, width, 3) of the first validation cases, where validated.
    """

    epoch: int
    stats: dict[str, float]
    val: Scores | None
    best_score: float
    best_epoch: int
    end_reason: str
    checkpoints: Path
    note: str = ""
    pictures: Pictures = field(default_factory=dict)

    def row(self) -> Row:
        """The result as flat numbers: a line of metrics.csv, a report to a sweep."""
        val = {f"val_{name}": value for name, value in (self.val or {}).items()}
        best: Row = {"best_score": self.best_score, "best_epoch": self.best_epoch, "end_reason": self.end_reason}
        return {"epoch": self.epoch, **val, **best, **self.stats}


def seed_epoch(config: TrainConfig, epoch: int) -> None:
    """Seed torch's generators (dropout) from the epoch alone, so that a resumed training draws the same."""
    torch.manual_seed(int(np.random.SeedSequence([config.seed, epoch, 3]).generate_state(1)[0]))


class Sums:
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

    def stats(self, training: Training, *, patches: int, seconds: float, wait: float) -> dict[str, float]:
        """The statistics of the epoch, under the names of metrics.csv: seconds, MiB, shares of 1."""
        total, base, dice, finite, norms, steps = self.values.tolist()
        peak = torch.cuda.max_memory_allocated(self.device) + training.steps.pool if self.device.type == "cuda" else 0
        return {
            "avg_total_loss": total / finite if finite else math.nan,
            "avg_base_loss": base / finite if finite else math.nan,
            "avg_dice_loss": dice / finite if finite else math.nan,
            "grad_norm": norms / steps if steps else math.nan,
            "steps": steps,
            "lr": training.schedule.lr,
            "epoch_time": seconds,
            "avg_batch_time": seconds / self.batches,
            "patches_per_second": patches / seconds,
            "data_wait_share": wait / seconds,
            "avg_gpu_memory": self.memory / self.batches / 2**20,
            "max_gpu_memory": peak / 2**20,
        }


def train_one_epoch(
    training: Training, loader: PatchLoader, check: Callable[[], object] = lambda: None
) -> dict[str, float]:
    """One pass of patches; returns the epoch's statistics under the names of metrics.csv.

    Ends early where max_skipped_steps steps in a row had a gradient that is not finite; training.skipped tells. check
    is called before each micro-batch and may raise.
    """
    config, device = training.config, training.device
    training.network.train()
    seed_epoch(config, training.epoch)
    last = math.ceil(loader.patches / config.batch_size) - 1
    sums, cases, patches = Sums(device), list[str](), 0
    lr = training.schedule.lr  # once: the GPU is waited for
    started = time.perf_counter()
    batches = Stopwatch(loader.epoch(training.epoch))
    for index, (places, x, y) in enumerate(made_beside(batches, config, device, training.epoch)):
        check()
        cases += loader.cases(places)
        losses = training.steps.micro_batch(x, y, share_of_step(index, len(x), loader.patches, config))
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
    training.step += int(stats["steps"])
    return stats


def share_of_step(index: int, samples: int, patches: int, config: TrainConfig) -> float:
    """The share of a micro-batch in its step: accumulated means then equal the mean over all patches of the step.

    The last step of an epoch may have fewer patches than the others; it is divided by its own number.
    """
    step_size = config.batch_size * config.accumulation_steps
    before = index // config.accumulation_steps * step_size
    return samples / min(step_size, patches - before)


def validate(
    network: torch.nn.Module,
    config: TrainConfig,
    folder: Path,
    names: Iterable[str],
    *,
    full: bool = False,
    on_case: Callable[[CachedCase, Labels], None] = lambda case, prediction: None,
) -> dict[str, Scores]:
    """Scores of each of these cached cases, predicted whole: {case: {dice_WT: ..., ...}}.

    full: all scores of score_case, not Dice alone. on_case: called with each case and its prediction, uint8 (D, H, W).
    """
    scores, device = {}, next(network.parameters()).device
    for name in names:
        case = open_case(folder, name)
        prediction = predict_label(network, case.image, case.mean, case.std, config)
        if full:
            around = math.prod(case.full_shape) - case.label.size
            scores[name] = score_case(prediction, case.label, spacing=spacing_of(case.affine), around=around)
        else:
            scores[name] = dice_scores(
                *(torch.from_numpy(np.array(each)).to(device) for each in (prediction, case.label))
            )
        on_case(case, prediction)
    return scores


def fit(
    config: TrainConfig,
    data: Data,
    on_epoch_end: Callable[[EpochResult], None] = lambda _: None,
    on_start: Callable[[Training], None] = lambda _: None,
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
    with algorithms(config):
        on_gpu = choose_device(config).type == "cuda"
        loader = PatchLoader(data.folder, data.split.train, config, pin_memory=on_gpu)
        if config.resume is None:
            loader.begin(0)  # while the network is drawn
        training = Training(config)
        if config.resume is not None:
            source, state = checkpoint.load_last_good(config.resume)
            training.load_state(state, data)
            done = f"{source} has done {training.epoch} of {config.epochs} epochs"
            if training.epoch >= config.epochs:
                raise InputError(f"{done}; raise --epochs to go on")
            if training.out_of_patience:
                raise InputError(f"{done} and ended by patience of {config.patience}; raise --patience to go on")
            on_start(training)
            training.keep_best(source.parent, folder)
        else:
            if config.pretrained is not None:
                print(checkpoint.load_pretrained(training.network, config.pretrained))
            on_start(training)
        with Behind() as behind:
            while True:
                result, write = run_epoch(training, loader, data, folder, save, behind.check)
                behind.start(partial(hand_over, result, write, on_epoch_end))
                del write  # it holds the state
                if result.end_reason:
                    return result


def hand_over(result: EpochResult, write: Callable[[], None], on_epoch_end: Callable[[EpochResult], None]) -> None:
    """Write an epoch's checkpoints, then tell of it."""
    write()
    on_epoch_end(result)


@contextlib.contextmanager
def algorithms(config: TrainConfig) -> Iterator[None]:
    """How kernels are chosen in a training; then as before.

    Of those for a fast training in mixed precision, cudnn names the fastest itself; to have it try all takes seconds in
    each process. In plain PyTorch it does not, and in float32 it names some that no CUDA graph can hold. With
    `deterministic` they repeat bit for bit.
    """
    before = torch.backends.cudnn.benchmark, torch.are_deterministic_algorithms_enabled()
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS repeats itself with this alone
    named = config.fast and config.amp != "off"
    torch.backends.cudnn.benchmark = not (named or config.deterministic)
    use_deterministic_algorithms(config.deterministic)
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before[0]
        use_deterministic_algorithms(before[1])


def use_deterministic_algorithms(wanted: bool) -> None:
    """torch's own, which imports its compiler, called where it changes something."""
    now = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    if now != (wanted, False):
        torch.use_deterministic_algorithms(wanted)


def run_epoch(
    training: Training, loader: PatchLoader, data: Data, folder: Path, save: Save, check: Callable[[], object]
) -> tuple[EpochResult, Callable[[], None]]:
    """Train, validate where it is due, step the schedule; returns what was done, and what writes its checkpoints."""
    config = training.config
    stats = train_one_epoch(training, loader, check)
    training.epoch += 1
    val: Scores | None = None
    pictures: Pictures = {}
    end_reason = note = ""

    def result() -> EpochResult:
        best = training.best_score, training.best_epoch
        return EpochResult(training.epoch, stats, val, *best, end_reason, folder, note, pictures)

    skipped, last = training.skipped, training.epoch == config.epochs
    if skipped.too_many:  # latest.pth stays that of the epoch before
        end_reason = "non_finite"
        note = f"the gradient was not finite in {skipped.in_a_row} steps in a row, the first in {skipped.first}"
        return result(), lambda: None
    if data.split.val and (training.epoch % config.val_freq == 0 or last):
        started = time.perf_counter()
        val, pictures = validate_and_draw(training, data, check)
        stats["val_time"] = time.perf_counter() - started
    better = training.judge(val) if val or data.split.val else last
    training.schedule.step(val[config.metric.removeprefix("val_")] if val else None)
    end_reason = "epochs" if last else "patience" if training.out_of_patience else ""
    return result(), training.saver(data, result().row(), folder, save, better=better)


def spread(names: Sequence[str], count: int) -> list[str]:
    """So many of these names, evenly spread; all of them for 0 or where there are no more."""
    if not count or count >= len(names):
        return list(names)
    return [names[index * len(names) // count] for index in range(count)]


def validate_and_draw(training: Training, data: Data, check: Callable[[], object]) -> tuple[Scores, Pictures]:
    """Mean scores over val_cases of the validation cases, and pictures of the first; check is called after each."""
    pictures: Pictures = {}

    def on_case(case: CachedCase, prediction: Labels) -> None:
        check()
        if len(pictures) < PICTURED:
            pictures[case.name] = picture(case.image, case.label, prediction)

    names = spread(data.split.val, training.config.val_cases)
    cases = validate(training.network, training.config, data.folder, names, on_case=on_case)
    return mean_scores(cases.values()), pictures
