"""The checkpoint files of a training: which are written when, in the background, and what a resume does with them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from trainable.core.config import TrainConfig
from trainable.core.device import choose_device
from trainable.core.errors import InputError
from trainable.core.files import atomic_copy
from trainable.core.logger import logger
from trainable.core.parallel import BackgroundWorker
from trainable.training.checkpoint import load_checkpoint, load_metadata, read_epoch, save_checkpoint
from trainable.training.training_dir import LATEST, TrainingDir


class CheckpointManager:
    """Writes the checkpoints of one training in the background, while the next epoch trains.

    Per epoch: best_model.pth if the epoch is the best so far, epoch_NNNN.pth every save_freq epochs, and latest.pth
    last, so that what latest.pth states about the first two is true. Leaving the context waits for the write in
    progress and raises its exception.

    Args:
        config: of the training; its output_dir has the folder of the checkpoints.
        flush: flush the files to the disk, so that they survive a crash of the machine too.
        one_file: of the files above that are due in an epoch, write only the first, and remove old files under the
            other due names. This is for a sweep's trial, whose files are copied to the sweep's storage at once.
    """

    def __init__(self, config: TrainConfig, *, flush: bool = True, one_file: bool = False) -> None:
        self.dir = TrainingDir(config.output_dir)
        self.save_freq, self.flush, self.one_file = config.save_freq, flush, one_file
        self.device = choose_device(config)
        self.background = BackgroundWorker()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.background.__exit__(*exception)

    def save(self, state: dict[str, Any], *, is_best: bool, on_written: Callable[[], object] = lambda: None) -> None:
        """Write an epoch's checkpoints in the background, then call on_written in the same thread.

        Returns once the state is copied, so that training may go on, and the previous epoch's files are written and
        their on_written has returned. An exception of writing or of on_written, SystemExit included, is raised by the
        next call of the manager, or when its context is left.

        Args:
            state: as TrainingState.state returns it.
            is_best: whether the epoch is the best so far.
            on_written: called once all files of the epoch are written.
        """
        epoch = state["epoch"]
        paths = [self.dir.best] * is_best + [self.dir.numbered(epoch)] * (epoch % self.save_freq == 0)
        staged = stage_to_cpu(state)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        # Only the task holds the staged state: it is freed once it is written.
        self.background.start(partial(self._write, staged, [*paths, self.dir.latest], on_written))

    def _write(self, state: dict[str, Any], paths: Sequence[Path], on_written: Callable[[], object]) -> None:
        """Write a staged state to all paths; if one_file, only to the first path, and remove the other files.

        In the latter case all old files are removed before: a file that replaces another one by a rename is written to
        the disk at once by ext4, and whatever is flushed meanwhile waits for it.
        """
        first, *others = paths
        if self.one_file:
            for path in paths:
                path.unlink(missing_ok=True)
            save_checkpoint(state, first, fsync=self.flush)
        else:
            save_checkpoint(state, first, *others, fsync=self.flush)
        on_written()

    def call_after_writing(self, callback: Callable[[], object]) -> None:
        """Wait until the files of the last epoch are written, then call `callback` in the background.

        Raises what was raised in the background before; what `callback` raises is raised by the next call.
        """
        self.background.start(callback)

    def wait(self) -> None:
        """Wait until the files are written and on_written has returned; raise what was raised in the background."""
        self.background.wait()

    def check(self) -> None:
        """Raise what was raised in the background; a write in progress is not waited for."""
        self.background.check()

    def adopt(self, source: Path, state: dict[str, Any]) -> bool:
        """Bring a loaded checkpoint, as latest.pth, and the best model in its folder into the manager's folder.

        latest.pth is not written if it is of the loaded epoch and has its options already, or if the source is
        elsewhere inside the output folder, as for a sweep's trial. A kill at any time leaves latest.pth whole, the old
        one or the new one. The best model is that of state["best_epoch"]: best_model.pth in the source's folder, else
        that epoch's numbered checkpoint or the source itself. If the source is in the manager's folder, that folder's
        checkpoints of later epochs are archived.

        Args:
            source: the file that was loaded.
            state: its content, with the options in use.

        Returns:
            Whether there is a checkpoint of state["best_epoch"]; if not, that is said. True if best_epoch is 0, as no
            epoch was validated yet, and there is no best model.
        """
        folder = self.dir.checkpoints
        same = source.parent.resolve() == folder.resolve()
        inside = not same and self.dir.path in source.parents
        if same:
            later = [path for path in sorted(folder.glob("*.pth")) if read_epoch(path) > state["epoch"]]
            archive_later(later, state["epoch"])
        if not inside and not is_on_disk(state, self.dir.latest):
            save_checkpoint(state, self.dir.latest)
        epoch = state["best_epoch"]
        names = (self.dir.best.name, self.dir.numbered(epoch).name)
        own = source if state["epoch"] == epoch else None
        best = next((path for path in map(source.with_name, names) if epoch_on_disk(path) == epoch), own)
        if best is None:
            logger.info(f"no checkpoint of the best epoch, {epoch}, is left: the next validation counts as the best")
            return False
        if epoch and best.resolve() != self.dir.best.resolve():
            folder.mkdir(parents=True, exist_ok=True)
            atomic_copy(best, self.dir.best, fsync=not inside)
        return True


def stage_to_cpu(value: Any) -> Any:
    """Return a copy of a state, of nested dicts and lists, with its tensors on the CPU.

    Tensors of a GPU are copied into pinned memory, which torch keeps for the process's next state. They may still be in
    transfer: synchronise with the GPU before you read them.
    """
    if isinstance(value, Tensor):
        copy = torch.empty_like(value, device="cpu", pin_memory=value.is_cuda)
        return copy.copy_(value.detach(), non_blocking=True)
    if isinstance(value, dict):
        return {key: stage_to_cpu(item) for key, item in value.items()}
    return [stage_to_cpu(item) for item in value] if isinstance(value, list) else value


def is_on_disk(state: dict[str, Any], path: Path) -> bool:
    """Return whether a checkpoint is of a state's epoch and options; False if it cannot be read."""
    try:
        saved = load_metadata(path)
    except InputError:
        return False
    return all(saved.get(key) == state.get(key) for key in ("epoch", "config"))


def epoch_on_disk(path: Path) -> int:
    """Return the epoch of a checkpoint; 0 if the file is missing, or, with a warning, if it is damaged."""
    try:
        return int(load_checkpoint(path)["epoch"]) if path.exists() else 0
    except InputError as error:
        logger.warning(str(error))
        return 0


def archive_later(paths: Sequence[Path], epoch: int) -> None:
    """Move checkpoints into a new folder next to them, and print its path; without paths do nothing.

    latest.pth, if among them, is copied, and stays until it is overwritten.

    Args:
        paths: the checkpoints of epochs after the resumed one, all in one folder.
        epoch: the resumed one.
    """
    if not paths:
        return
    archive = paths[0].parent / f"before_going_back_to_{epoch:04d}_{time.strftime('%Y%m%d-%H%M%S')}"
    archive.mkdir()
    for path in sorted(paths, key=lambda path: path.name != LATEST):  # the copy first, as it may find the disk full
        if path.name == LATEST:
            atomic_copy(path, archive / path.name)
        else:
            path.rename(archive / path.name)
    logger.info(f"going back to epoch {epoch}: the checkpoints of later epochs are in {archive}")
