"""The state of a training: everything that a checkpoint holds, how it is saved and how it goes on."""

from __future__ import annotations

import platform
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainable.core.config import TrainConfig
from trainable.core.device import choose_device
from trainable.core.errors import InputError
from trainable.core.options import fixed_on_resume, to_dict
from trainable.data.prepare import Data
from trainable.evaluation.metrics import Scores
from trainable.model.losses import make_loss
from trainable.model.unet3d import UNet3D, build_network
from trainable.training import checkpoint
from trainable.training.epoch_result import Row
from trainable.training.optimizers import Schedule, make_optimizer
from trainable.training.step import TrainStep

Save = Callable[..., None]  # a state, a path, and paths of copies

# Of the optimizer's groups: as the config and the device of the day have them, not the checkpoint.
CONFIG_OWNED_GROUP_KEYS = ("weight_decay", "momentum", "nesterov", "fused", "capturable")


@dataclass
class SkippedSteps:
    """Counts the steps in a row whose gradient was not finite, on a GPU one step late, so that it is not waited for.

    limit: so many are too many. first: where the present row of them began.
    """

    limit: int
    in_a_row: int = 0
    first: str = ""
    too_many: bool = False
    unread: list[tuple[Tensor, torch.cuda.Event | None, str]] = field(default_factory=list)

    def add(self, norm: Tensor, place: str) -> None:
        """Note a step by the norm of its gradient; place says in words which step it is."""
        self.read()
        finite = norm.isfinite().to("cpu", non_blocking=True)
        event = torch.cuda.Event() if norm.is_cuda else None
        self.unread.append((finite, event, place))
        if event is None:
            self.read()
        else:
            event.record()

    def read(self) -> None:
        """Bring the count up to the last step."""
        for finite, event, place in self.unread:
            if event is not None:
                event.synchronize()
            if not finite and not self.in_a_row:
                self.first = place
            if not self.too_many:  # the one that was under way when there were too many changes nothing
                self.in_a_row = 0 if finite else self.in_a_row + 1
                self.too_many = self.in_a_row >= self.limit
        self.unread.clear()


class TrainingState:
    """Everything that a checkpoint holds: state() and load_state() name it in one place."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.device = choose_device(config)
        torch.manual_seed(config.seed)
        self.network: UNet3D = build_network(config).to(self.device)
        # Are steps replayed from CUDA graphs? Not where blocks are computed again: that draws their dropout again,
        # which no graph may, and reads other weights than step.cast_conv_weights gave.
        self.use_cuda_graphs = config.fast and self.device.type == "cuda" and not config.gradient_checkpointing
        if config.fast and self.device.type == "cuda":
            self.network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self.optimizer = make_optimizer(self.network, config)
        self.schedule = Schedule(self.optimizer, config)
        # Enabled whatever the precision, since it skips a step whose gradient is not finite; only fp16 needs the scale.
        self.scaled = config.amp == "fp16" and self.device.type == "cuda"
        self.scaler = torch.amp.GradScaler(self.device.type, init_scale=2.0**16 if self.scaled else 1.0)
        self.loss = make_loss(config)
        self.steps = TrainStep(self)
        self.epoch = self.step = 0  # done; a skipped step is not
        self.best_score, self.best_epoch = 0.0, 0
        self.validations_without_gain = 0
        self.skipped = SkippedSteps(config.max_skipped_steps)
        self.row: Row = {}  # of the last epoch
        self.resumed: dict[str, Any] = {}  # the state that was loaded, until it is kept

    @property
    def out_of_patience(self) -> bool:
        """Were there `patience` validations without a better score?"""
        return bool(self.config.patience) and self.validations_without_gain >= self.config.patience

    def update_best(self, val: Scores | None) -> bool:
        """Is this validation the best so far? Counts the patience."""
        if val is None:
            return False
        score = val[self.config.metric.removeprefix("val_")]
        if score > self.best_score or not self.best_epoch:
            self.best_score, self.best_epoch, self.validations_without_gain = score, self.epoch, 0
            return True
        self.validations_without_gain += 1
        return False

    def state(self, data: Data, row: Row) -> dict[str, Any]:
        """The whole state at the end of an epoch, as tensors and plain values.

        The sampler's position is the epoch: which patches an epoch draws follows from (seed, epoch, index).
        """
        return {
            "epoch": self.epoch,
            "step": self.step,
            "network": self.network.state_dict(),
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
            "row": row,
            "versions": {name: str(module.__version__) for name, module in (("torch", torch), ("numpy", np))}
            | {"python": platform.python_version()},
        }

    def optimizer_state(self) -> dict[str, Any]:
        """That of the optimizer, with plain numbers in its groups also where a CUDA graph reads them from the GPU."""
        state = self.optimizer.state_dict()
        groups = [{**group, "lr": float(group["lr"])} for group in state["param_groups"]]
        return {**state, "param_groups": groups}

    def load_state(self, state: dict[str, Any], data: Data) -> None:
        """Go on from a checkpoint's state, with the options of this config where they may change."""
        saved = state["config"]
        check_resumable(self.config, saved)
        if state["split"] != data.split.digest():
            raise InputError("--resume: the cases or their split are not those of the checkpoint; restore them")
        self.network.load_state_dict(state["network"])
        groups = [
            {**group, **{name: own[name] for name in CONFIG_OWNED_GROUP_KEYS if name in own}}
            for group, own in zip(state["optimizer"]["param_groups"], self.optimizer.param_groups, strict=True)
        ]
        self.optimizer.load_state_dict({**state["optimizer"], "param_groups": groups})
        for parameter, moments in self.optimizer.state.items():  # fused updates take no other layout
            for name, value in moments.items():
                if torch.is_tensor(value) and value.shape == parameter.shape:
                    moments[name] = torch.empty_like(parameter).copy_(value)
        self.schedule.load_state_dict(state["schedule"])
        if self.scaled and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self.epoch, self.step = state["epoch"], state["step"]
        self.best_score, self.best_epoch = state["best_score"], state["best_epoch"]
        self.validations_without_gain = state["validations_without_gain"]
        self.skipped = SkippedSteps(self.config.max_skipped_steps, *state["skipped_steps"])
        self.row, self.resumed = state["row"], state
        set_random_state(state["random"])
        if self.config.lr != saved["lr"]:
            self.schedule.set_base_lr(self.config.lr)

    def saver(self, data: Data, row: Row, folder: Path, save: Save, *, better: bool) -> Callable[[], None]:
        """What writes the checkpoints of the epoch that was trained, whatever is trained meanwhile.

        save: as checkpoint.save_checkpoint; latest.pth is the last that it is given, so that what it says of the others
        is true.
        """
        names = [checkpoint.BEST] * better
        names += [f"epoch_{self.epoch:04d}.pth"] * (self.epoch % self.config.save_freq == 0)
        state = stage_to_cpu(self.state(data, row))
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return partial(save, state, *(folder / name for name in [*names, checkpoint.LATEST]))

    def adopt_checkpoint(self, source: Path, folder: Path) -> None:
        """Take along what was loaded, as latest.pth, and the best model so far, from the folder of that checkpoint.

        Whenever a kill comes, latest.pth is whole, and as it was or what was loaded. A checkpoint inside of the output
        folder, as a trial's, stays where it is. Where the best model is damaged, not there any more, or of a later
        epoch since an earlier checkpoint was resumed, the next validation counts as the best.
        """
        best, same = source / checkpoint.BEST, source.resolve() == folder.resolve()
        inside = not same and folder.parent in source.parents
        if same:
            later = [path for path in sorted(folder.glob("*.pth")) if checkpoint.read_epoch(path) > self.epoch]
            archive_later(later, self.epoch)
        if not inside and checkpoint.read_epoch(folder / checkpoint.LATEST) != self.epoch:
            checkpoint.save_checkpoint(self.resumed, folder / checkpoint.LATEST)
        self.resumed = {}
        epoch = best_epoch_on_disk(best)
        if epoch != self.best_epoch:
            self.best_score, self.best_epoch, self.validations_without_gain = 0.0, 0, 0
        elif epoch and not same:
            folder.mkdir(parents=True, exist_ok=True)
            checkpoint.atomic_copy(best, folder / checkpoint.BEST, fsync=not inside)


def stage_to_cpu(value: Any) -> Any:
    """A copy of a state with its tensors on the CPU, those of a GPU being on their way still.

    They go into pinned memory, which torch keeps for the process's next state.
    """
    if isinstance(value, Tensor):
        copy = torch.empty_like(value, device="cpu", pin_memory=value.is_cuda)
        return copy.copy_(value.detach(), non_blocking=True)
    if isinstance(value, dict):
        return {key: stage_to_cpu(each) for key, each in value.items()}
    return [stage_to_cpu(each) for each in value] if isinstance(value, list) else value


def best_epoch_on_disk(path: Path) -> int:
    """The epoch of a best model; 0 where there is none, or a damaged one, which is said."""
    try:
        return int(checkpoint.load_checkpoint(path)["epoch"]) if path.exists() else 0
    except InputError as error:
        print(f"{error}; the next validation counts as the best")
        return 0


def archive_later(paths: Sequence[Path], epoch: int) -> None:
    """Move checkpoints that a training goes back behind into a folder of their own, and say so.

    latest.pth, if among them, is copied there, and stays until it is written over.
    """
    if not paths:
        return
    place = paths[0].parent / f"before_going_back_to_{epoch:04d}_{time.strftime('%Y%m%d-%H%M%S')}"
    place.mkdir()
    for path in sorted(paths, key=lambda path: path.name != checkpoint.LATEST):  # first what may find the disk full
        if path.name == checkpoint.LATEST:
            checkpoint.atomic_copy(path, place / path.name)
        else:
            path.rename(place / path.name)
    print(f"going back to epoch {epoch}: the checkpoints of later epochs are in {place}")


def check_resumable(config: TrainConfig, saved: dict[str, Any]) -> None:
    """Raise InputError where a config changes what a checkpoint's options, as plain values, have fixed."""
    now = to_dict(config)
    for name in fixed_on_resume():
        if now[name] != saved[name]:
            raise InputError(
                f"--resume: {name} is {saved[name]!r} in the checkpoint and {now[name]!r} now; "
                "it cannot change on resume. Start anew, or with --pretrained"
            )


def random_state() -> dict[str, Any]:
    """The state of the global generators of Python, numpy, torch and CUDA.

    The trainer itself draws from generators that it seeds for each epoch and patch; this is for what is added to it.
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
    """Go on with what random_state gave; a GPU that was not there keeps its own."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_initialized():
        for device, cuda in enumerate(state["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(cuda, device)
