"""The state of a training: everything that a checkpoint stores and that a resumed training continues from."""

from __future__ import annotations

import platform
import random
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainable.cases.grid import ORIENTATION
from trainable.cases.labels import labels_of_checkpoint
from trainable.core.config import TrainConfig
from trainable.core.device import check_precision, choose_device
from trainable.core.division import micro_batch_groups
from trainable.core.errors import InputError
from trainable.core.options import option_names, to_dict
from trainable.core.ranks import block_group, world_size
from trainable.data.cache import changed_cases
from trainable.data.prepare import Data
from trainable.evaluation.metrics import Scores
from trainable.model.losses import make_loss
from trainable.model.unet3d import UNet3D, build_network
from trainable.training.epoch_result import Row
from trainable.training.gradient_sum import GradientSum
from trainable.training.optimizers import make_optimizer
from trainable.training.schedules import Schedule
from trainable.training.seen_cases import History, cases_by_part
from trainable.training.step import TrainStep, needs_loss_scale
from trainable.training.training_dir import TRAINED_OPTIONS
from trainable.training.weight_average import WeightAverage

# Keys of the optimizer's groups that follow the config and the device in use, not the checkpoint.
CONFIG_OWNED_GROUP_KEYS = ("weight_decay", "momentum", "nesterov", "fused", "capturable")
# Options that a resume sets by itself: where the training lies, and that it starts from no other weights.
SET_BY_RESUME = ("output_dir", "split_file", "pretrained")


@dataclass
class SkippedSteps:
    """Counts consecutive steps whose gradient was not finite; on a GPU one step late, to avoid waiting for it.

    limit: number of consecutive skipped steps that are too many. in_a_row: skipped steps since the last good one.
    first: in words, where the latest sequence of skipped steps began; "" before one. too_many: in_a_row has reached
    limit; it stays True.
    """

    limit: int
    in_a_row: int = 0
    first: str = ""
    too_many: bool = False
    unread: list[tuple[Tensor, torch.cuda.Event | None, str]] = field(default_factory=list)

    def add(self, norm: Tensor, location: str) -> None:
        """Note a step by the norm of its gradient; location says in words which step it is.

        On a GPU the step is counted by the next call of add or read.
        """
        self.read()
        finite = norm.isfinite().to("cpu", non_blocking=True)
        event = torch.cuda.Event() if norm.is_cuda else None
        self.unread.append((finite, event, location))
        if event is None:
            self.read()
        else:
            event.record()

    def read(self) -> None:
        """Count the last step too; on a GPU this waits until that step is done."""
        for finite, event, location in self.unread:
            if event is not None:
                event.synchronize()
            if not finite and not self.in_a_row:
                self.first = location
            if not self.too_many:  # the step that was in progress when there were too many changes nothing
                self.in_a_row = 0 if finite else self.in_a_row + 1
                self.too_many = self.in_a_row >= self.limit
        self.unread.clear()


class TrainingState:
    """Everything that a checkpoint stores: state() and load_state() name it in one place.

    Making one seeds torch's generators with the option `seed`, and draws the initial weights.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.device = choose_device(config)
        check_precision(config, self.device)
        torch.manual_seed(config.seed)
        self.network: UNet3D = build_network(config).to(self.device)
        if config.fast and self.device.type == "cuda":
            self.network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self.optimizer = make_optimizer(self.network, config)
        self.schedule = Schedule(self.optimizer, config)
        # In every precision, as it skips a step whose gradient is not finite; only fp16 needs the scale.
        self.scaled = needs_loss_scale(config, self.device)
        self.scaler = torch.amp.GradScaler(self.device.type, init_scale=2.0**16 if self.scaled else 1.0)
        self.average = WeightAverage(self.network, config.ema_decay) if config.ema_decay else None
        groups = micro_batch_groups(config, world_size())
        members = world_size() // groups
        self.parts_micro_batches = members > 1  # each micro-batch is divided among several processes
        loss = make_loss(config, block_group(members) if self.parts_micro_batches else None)
        self.gradient_sum = GradientSum(self.network) if world_size() > 1 else None
        self.train_step = TrainStep(
            self.network, loss, self.optimizer, self.scaler, config, self.average, self.gradient_sum,
            micro_batches=config.accumulation_steps // groups,
        )  # fmt: skip
        self.epoch = self.step = 0  # finished epochs, and steps without the skipped ones
        self.best_score, self.best_epoch = 0.0, 0
        self.validations_without_gain = 0
        self.skipped = SkippedSteps(config.max_skipped_steps)
        self.row: Row = {}  # of the last epoch of a resumed training
        self.case_rows = ""  # likewise
        self.history = History()  # of the weights that the training started from

    @property
    def validated_network(self) -> UNet3D:
        """The network that is validated and predicts: the averaged one with `ema_decay`, else the trained one."""
        return self.network if self.average is None else self.average.network

    @property
    def out_of_patience(self) -> bool:
        """Whether the last `patience` validations had no better score than those before; False if patience is 0."""
        return bool(self.config.patience) and self.validations_without_gain >= self.config.patience

    def update_best(self, val: Scores | None) -> bool:
        """Count a validation, also for the patience; return whether it is the best so far.

        val: its mean scores; None if the epoch was not validated: nothing is counted then, and the result is False.
        """
        if val is None:
            return False
        score = val[self.config.metric.removeprefix("val_")]
        if score > self.best_score or not self.best_epoch:
            self.best_score, self.best_epoch, self.validations_without_gain = score, self.epoch, 0
            return True
        self.validations_without_gain += 1
        return False

    def reset_best(self) -> None:
        """Let the next validation count as the best, and the patience start again."""
        self.best_score, self.best_epoch, self.validations_without_gain = 0.0, 0, 0

    def state(self, data: Data, row: Row, case_rows: str = "") -> dict[str, Any]:
        """Return the whole state at the end of an epoch, as tensors, not copied, and plain values.

        The sampler's position is the epoch: which patches an epoch draws follows from (seed, epoch, index).

        row, case_rows: of the epoch, as in metrics.csv and case_scores.csv. A resumed training logs them if a kill
            came before the log.
        """
        return {
            "epoch": self.epoch,
            "step": self.step,
            "network": self.network.state_dict(),
            **({"ema": self.average.network.state_dict()} if self.average else {}),
            "optimizer": self.optimizer_state(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict() if self.scaled else {},
            "best_score": self.best_score,
            "best_epoch": self.best_epoch,
            "validations_without_gain": self.validations_without_gain,
            "skipped_steps": [self.skipped.in_a_row, self.skipped.first],
            "random": random_state(),
            "config": to_dict(self.config),
            "split": data.split.digest(),
            "labels": data.labels.plain(),
            "grid": {"orientation": ORIENTATION, "spacing": list(data.spacing), "resample": self.config.resample},
            "cases": cases_by_part(data),
            "seen": self.history.to_state(),
            "row": row,
            "case_scores": case_rows,
            "versions": {name: str(module.__version__) for name, module in (("torch", torch), ("numpy", np))}
            | {"python": platform.python_version()},
        }

    def optimizer_state(self) -> dict[str, Any]:
        """Return the optimizer's state, with lr as a plain number even if a CUDA graph reads it from the GPU."""
        state = self.optimizer.state_dict()
        groups = [{**group, "lr": float(group["lr"])} for group in state["param_groups"]]
        return {**state, "param_groups": groups}

    def with_options(self, state: dict[str, Any]) -> dict[str, Any]:
        """Return a loaded checkpoint's state with the options in use, so that the next resume goes on with them too.

        The state itself is returned if its options are the same.
        """
        if same_options(self.config, state["config"]):
            return state
        optimizer = {**state["optimizer"], "param_groups": self.optimizer_state()["param_groups"]}
        rest = {key: value for key, value in state.items() if key != TRAINED_OPTIONS}
        return {**rest, "config": to_dict(self.config), "optimizer": optimizer}

    def load_state(self, state: dict[str, Any], data: Data) -> None:
        """Continue from a checkpoint's state, with the options of `self.config`, a new lr included.

        Raises:
            InputError: if an option that is fixed on resume, the split, the meaning of the labels or the content of a
                case differs from the
                checkpoint's.
        """
        saved = state["config"]
        check_resumable(self.config, saved)
        if state["split"] != data.split.digest():
            raise InputError("--resume: the cases or their split are not those of the checkpoint; restore them")
        if "labels" in state and (labels := labels_of_checkpoint(state)) not in data.labels.variants:
            raise InputError(
                f"--resume: the labels are read as {data.labels}, by the checkpoint as {labels}; see --labels"
            )
        begun = {name: content for part in state.get("cases", {}).values() for name, content in part.items()}
        if changed := changed_cases(data.contents, begun):
            raise InputError(f"--resume: cases have changed since: {changed}; restore them, or start a new training")
        self.history = History.before(state)
        self.network.load_state_dict(state["network"])
        self.load_optimizer_state(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        if self.scaled and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self.epoch, self.step = state["epoch"], state["step"]
        self.best_score, self.best_epoch = state["best_score"], state["best_epoch"]
        self.validations_without_gain = state["validations_without_gain"]
        if self.average and "ema" in state:
            self.average.load(state["ema"], self.step)
        elif self.average:  # switched on by the resume
            self.average.restart(self.step)
        self.skipped = SkippedSteps(self.config.max_skipped_steps, *state["skipped_steps"])
        self.row, self.case_rows = state["row"], state.get("case_scores", "")  # younger than the first checkpoints
        set_random_state(state["random"])
        if self.config.lr != saved["lr"]:
            self.schedule.set_base_lr(self.config.lr)

    def load_optimizer_state(self, state: dict[str, Any]) -> None:
        """Load the optimizer's state, except CONFIG_OWNED_GROUP_KEYS, which stay as they are in use."""
        groups = [
            {**group, **{name: own[name] for name in CONFIG_OWNED_GROUP_KEYS if name in own}}
            for group, own in zip(state["param_groups"], self.optimizer.param_groups, strict=True)
        ]
        self.optimizer.load_state_dict({**state, "param_groups": groups})
        for parameter, moments in self.optimizer.state.items():  # fused updates take no other memory layout
            for name, value in moments.items():
                if torch.is_tensor(value) and value.shape == parameter.shape:
                    moments[name] = torch.empty_like(parameter).copy_(value)


def same_options(config: TrainConfig, saved: dict[str, Any]) -> bool:
    """Return whether a resume without any option goes on with those of a config.

    saved: the options in the checkpoint, as plain values; one that it lacks is younger and had its default.
    """
    now, saved = to_dict(config), {**to_dict(TrainConfig()), **saved}
    return all(now[name] == saved[name] for name in option_names(one_call=False) if name not in SET_BY_RESUME)


def check_resumable(config: TrainConfig, saved: dict[str, Any]) -> None:
    """Raise InputError if a config changes an option that cannot change on resume.

    saved: the options in the checkpoint, as plain values; one that it lacks is younger and had its default.
    """
    now, saved = to_dict(config), {**to_dict(TrainConfig()), **saved}
    for name in option_names(fixed=True):
        if now[name] != saved[name]:
            raise InputError(
                f"--resume: {name} is {saved[name]!r} in the checkpoint and {now[name]!r} now; "
                "it cannot change on resume. Start a new training, or one with --pretrained"
            )


def random_state() -> dict[str, Any]:
    """Return the state of the global generators of Python, numpy, torch and CUDA.

    The trainer itself draws from generators that it seeds per epoch and patch; these states are kept for code that is
    added to the trainer and draws from the global generators.
    """
    version, words, gauss = random.getstate()
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002
    return {
        "python": [version, list(words), gauss],
        "numpy": [kind, torch.from_numpy(np.asarray(keys, np.int64)), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Restore what random_state returned; a GPU whose state is not in it keeps its own."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_initialized():
        for device, cuda in enumerate(state["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(cuda, device)
