"""The training loop: train_one_epoch, validate, and fit, which runs them to the end."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainable import checkpoint
from trainable.augment import augment, normalise, regions_tensor
from trainable.cache import open_case
from trainable.config import InputError, TrainConfig
from trainable.data import Data
from trainable.inference import autocast, predict_label
from trainable.losses import make_loss
from trainable.metrics import mean_scores, score_case, spacing_of
from trainable.optimizers import Schedule, make_optimizer
from trainable.options import plain
from trainable.patches import Batch, PatchLoader
from trainable.unet3d import UNet3D, build_network

Row = dict[str, float | int | str]

# A resumed training may change anything but these, which give the state its shape, and the split.
FIXED_ON_RESUME = (
    *("depth", "base_channels", "max_channels", "residual", "deep_supervision", "optimizer", "scheduler", "seed"),
)


ASKED = ("weight_decay", "momentum", "nesterov")  # of the optimizer's groups: as the config now says, not the state


@dataclass(frozen=True)
class EpochResult:
    """What one epoch did.

    epoch: how many epochs are done, from 1. stats: the training's statistics. val: mean scores over the validation
    cases, or None where the epoch was not validated. end_reason: "" while the training goes on, else "epochs",
    "patience" or "non_finite". checkpoints: the folder of latest.pth and best_model.pth.
    """

    epoch: int
    stats: dict[str, float]
    val: dict[str, float] | None
    best_score: float
    best_epoch: int
    end_reason: str
    checkpoints: Path

    def row(self) -> Row:
        """The result as flat numbers: a line of metrics.csv, a report to a sweep."""
        val = {f"val_{name}": value for name, value in (self.val or {}).items()}
        best: Row = {"best_score": self.best_score, "best_epoch": self.best_epoch, "end_reason": self.end_reason}
        return {"epoch": self.epoch, **val, **best, **self.stats}


def choose_device(config: TrainConfig) -> torch.device:
    """The device that a config asks for."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise InputError("device is 'cuda', but torch sees no CUDA GPU here; use --device cpu or auto")
    return torch.device("cpu" if config.device == "cpu" or not torch.cuda.is_available() else "cuda")


class Training:
    """Everything that a checkpoint holds: state() and load_state() name it in one place."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.device = choose_device(config)
        torch.manual_seed(config.seed)
        self.network: UNet3D = build_network(config).to(self.device)
        self.optimizer = make_optimizer(self.network, config)
        self.schedule = Schedule(self.optimizer, config)
        self.scaler = torch.amp.GradScaler(
            self.device.type, enabled=config.amp == "fp16" and self.device.type == "cuda"
        )
        self.loss = make_loss(config)
        self.epoch = 0  # epochs done
        self.best_score, self.best_epoch = 0.0, 0
        self.validations_without_gain = 0

    def judge(self, val: dict[str, float] | None) -> bool:
        """Is this validation the best so far? Counts the patience."""
        if val is None:
            return False
        score = val[self.config.metric.removeprefix("val_")]
        if score > self.best_score or not self.best_epoch:
            self.best_score, self.best_epoch, self.validations_without_gain = score, self.epoch, 0
            return True
        self.validations_without_gain += 1
        return False

    def result(
        self, stats: dict[str, float], val: dict[str, float] | None, end_reason: str, folder: Path
    ) -> EpochResult:
        """The result of the epoch just done."""
        return EpochResult(self.epoch, stats, val, self.best_score, self.best_epoch, end_reason, folder)

    def state(self, data: Data, row: Row) -> dict[str, Any]:
        """The whole state at the end of an epoch, as tensors and plain values."""
        return {
            "epoch": self.epoch,
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "best_score": self.best_score,
            "best_epoch": self.best_epoch,
            "validations_without_gain": self.validations_without_gain,
            "config": plain(self.config),
            "split": data.split.digest(),
            "row": row,
            "versions": {"torch": str(torch.__version__)},
        }

    def load_state(self, state: dict[str, Any], data: Data) -> None:
        """Go on from a checkpoint's state. Random numbers need no state: each epoch derives its own seed."""
        saved = state["config"]
        for name, value in plain(self.config).items():
            if name in FIXED_ON_RESUME and value != saved[name]:
                raise InputError(
                    f"--resume: {name} is {saved[name]!r} in the checkpoint and {value!r} now; "
                    "it cannot change on resume. Start anew, or with --pretrained"
                )
        if state["split"] != data.split.digest():
            raise InputError("--resume: the cases or their split are not those of the checkpoint; restore them")
        self.network.load_state_dict(state["network"])
        asked = [{name: group[name] for name in ASKED if name in group} for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state["optimizer"])
        for group, values in zip(self.optimizer.param_groups, asked, strict=True):
            group.update(values)
        self.schedule.load_state_dict(state["schedule"])
        if self.scaler.is_enabled() and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self.epoch, self.best_score, self.best_epoch = state["epoch"], state["best_score"], state["best_epoch"]
        self.validations_without_gain = state["validations_without_gain"]
        if self.config.lr != saved["lr"]:
            self.schedule.set_base_lr(self.config.lr)

    def keep_best(self, source: Path, folder: Path) -> None:
        """Take along the best model so far, from the folder of the checkpoint that was loaded.

        Where it is not there any more (an earlier checkpoint was resumed), the next validation counts as the best.
        """
        best = source / checkpoint.BEST
        if not best.exists() or checkpoint.load_checkpoint(best)["epoch"] != self.best_epoch:
            self.best_score, self.best_epoch, self.validations_without_gain = 0.0, 0, 0
        elif source.resolve() != folder.resolve():
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(best, folder / checkpoint.BEST)


def seed_epoch(config: TrainConfig, epoch: int) -> None:
    """Seed torch's generators (dropout) from the epoch alone, so that a resumed training draws the same."""
    torch.manual_seed(int(np.random.SeedSequence([config.seed, epoch, 3]).generate_state(1)[0]))


def train_one_epoch(training: Training, loader: PatchLoader) -> dict[str, float]:
    """One pass of patches; returns the epoch's statistics under the names of metrics.csv."""
    config, device = training.config, training.device
    training.network.train()
    seed_epoch(config, training.epoch)
    batches = math.ceil(loader.patches / config.batch_size)
    sums = torch.zeros(4, device=device)  # total, base and dice loss by patch, gradient norm by step
    wait, started = 0.0, time.perf_counter()
    asked = started
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    for index, batch in enumerate(loader.epoch(training.epoch)):
        wait += time.perf_counter() - asked
        x, y = to_network(batch, config, device, training.epoch, index * config.batch_size)
        with autocast(config, device):
            heads = training.network(x)
        loss = training.loss(heads, y)
        training.scaler.scale(loss.total * share_of_step(index, len(x), loader.patches, config)).backward()
        sums[:3] += torch.stack([part.detach() for part in loss]).float() * len(x)
        if (index + 1) % config.accumulation_steps == 0 or index + 1 == batches:
            sums[3] += update(training)
        asked = time.perf_counter()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - started
    total, base, dice, norm = sums.tolist()
    steps = math.ceil(batches / config.accumulation_steps)
    return {
        "avg_total_loss": total / loader.patches,
        "avg_base_loss": base / loader.patches,
        "avg_dice_loss": dice / loader.patches,
        "grad_norm": norm / steps,
        "lr": training.schedule.lr,
        "epoch_time": seconds,
        "avg_batch_time": seconds / batches,
        "patches_per_second": loader.patches / seconds,
        "data_wait_share": wait / seconds,
        "avg_gpu_memory": torch.cuda.memory_allocated(device) / 2**20 if device.type == "cuda" else 0.0,
        "max_gpu_memory": torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else 0.0,
    }


def share_of_step(index: int, samples: int, patches: int, config: TrainConfig) -> float:
    """The share of a micro-batch in its step: accumulated means then equal the mean over all patches of the step.

    The last step of an epoch may have fewer patches than the others; it is divided by its own number.
    """
    step_size = config.batch_size * config.accumulation_steps
    before = index // config.accumulation_steps * step_size
    return samples / min(step_size, patches - before)


def to_network(
    batch: Batch, config: TrainConfig, device: torch.device, epoch: int, first: int
) -> tuple[Tensor, Tensor]:
    """A batch as read -> normalised, augmented image (N, 4, D, H, W) and target (N, 3, D, H, W) on the device."""
    image, label, mean, std = (batch[name].to(device, non_blocking=True) for name in ("image", "label", "mean", "std"))
    x, y = normalise(image, mean, std), regions_tensor(label)
    return augment(x, y, config, epoch, first) if config.augment else (x, y)


def update(training: Training) -> Tensor:
    """One step: unscale, clip, update, zero. Returns the norm of the gradient before clipping."""
    training.scaler.unscale_(training.optimizer)
    limit = training.config.gradient_clipping or math.inf
    norm = torch.nn.utils.clip_grad_norm_(training.network.parameters(), limit)
    if training.scaler.is_enabled():
        norm = norm.nan_to_num(0, 0, 0)  # fp16 overflowed: the scaler skips this step and lowers its scale
    training.scaler.step(training.optimizer)
    training.scaler.update()
    training.optimizer.zero_grad(set_to_none=True)
    return norm


def validate(
    network: UNet3D, config: TrainConfig, folder: Path, names: Iterable[str], *, distances: bool = False
) -> dict[str, dict[str, float]]:
    """Scores of each of these cached cases, predicted whole: {case: {dice_WT: ..., ...}}."""
    scores = {}
    for name in names:
        case = open_case(folder, name)
        prediction = predict_label(network, case.image, case.mean, case.std, config)
        scores[name] = score_case(prediction, case.label, spacing=spacing_of(case.affine), distances=distances)
    return scores


def fit(config: TrainConfig, data: Data, on_epoch_end: Callable[[EpochResult], None] = lambda _: None) -> EpochResult:
    """Train to the last epoch or until patience ends; returns the last epoch's result.

    Writes `latest.pth` each epoch, `best_model.pth` at each better validated `metric` and `epoch_NNNN.pth` every
    save_freq epochs into output_dir/checkpoints. Without validation cases the last epoch is the best. `on_epoch_end`
    is called after the checkpoints are on disk; what it raises ends the training, which can be resumed.
    Only the train and val parts of the split are read.
    """
    folder = config.output_dir / "checkpoints"
    torch.backends.cudnn.benchmark = True
    training = Training(config)
    if config.resume is not None:
        source = checkpoint.find_checkpoint(config.resume)
        training.load_state(checkpoint.load_checkpoint(source), data)
        training.keep_best(source.parent, folder)
        if training.epoch >= config.epochs:
            raise InputError(f"{source} has done {training.epoch} of {config.epochs} epochs; raise --epochs to go on")
    elif config.pretrained is not None:
        print(checkpoint.load_pretrained(training.network, config.pretrained))
    loader = PatchLoader(data.folder, data.split.train, config, pin_memory=training.device.type == "cuda")
    while True:
        result = run_epoch(training, loader, data, folder)
        on_epoch_end(result)
        if result.end_reason:
            return result


def run_epoch(training: Training, loader: PatchLoader, data: Data, folder: Path) -> EpochResult:
    """Train, validate where it is due, step the schedule, write the checkpoints."""
    config = training.config
    stats = train_one_epoch(training, loader)
    training.epoch += 1
    if not math.isfinite(stats["avg_total_loss"] + stats["grad_norm"]):
        return training.result(stats, None, "non_finite", folder)  # latest.pth stays that of the last good epoch
    last = training.epoch == config.epochs
    val = None
    if data.split.val and (training.epoch % config.val_freq == 0 or last):
        started = time.perf_counter()
        val = mean_scores(validate(training.network, config, data.folder, data.split.val).values())
        stats["val_time"] = time.perf_counter() - started
    better = training.judge(val) if val or data.split.val else last
    training.schedule.step(val[config.metric.removeprefix("val_")] if val else None)
    out_of_patience = bool(config.patience) and training.validations_without_gain >= config.patience
    result = training.result(stats, val, "epochs" if last else "patience" if out_of_patience else "", folder)
    state = training.state(data, result.row())
    names = [checkpoint.LATEST] + [checkpoint.BEST] * better
    names += [f"epoch_{training.epoch:04d}.pth"] * (training.epoch % config.save_freq == 0)
    for name in names:
        checkpoint.save_checkpoint(state, folder / name)
    return result
