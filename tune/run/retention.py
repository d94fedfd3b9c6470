"""Which checkpoints of a sweep stay on disk, and how much room they need."""

from __future__ import annotations

import shutil
from pathlib import Path, PurePosixPath

from optuna.trial import TrialState
from pyarrow import fs

from trainable.core.errors import InputError
from trainable.model.unet3d import parameters_of
from trainable.training import checkpoint
from tune.run.results import Run, TrialResult
from tune.spec.sweep_config import SweepConfig

NUM_TO_KEEP = 2  # checkpoint folders of a living trial; each has best_model.pth, and latest.pth where that is newer
CHECKPOINT_BYTES_PER_PARAMETER = 3 * 4  # bytes a parameter: float32 weights and the two moments of Adam


def check_disk_space(config: SweepConfig, storage: str, slots: int) -> str:
    """What the checkpoints of a sweep may need at most, in words, for the default recipe's network.

    Raises:
        InputError: where the disk of a local storage has less.
    """
    size = parameters_of(config.base_config()) * CHECKPOINT_BYTES_PER_PARAMETER
    files = 2 * NUM_TO_KEEP * min(slots, config.budget.trials) + config.budget.trials + 1  # living, ended, RUN/best
    said = f"checkpoints: at most {files} of {format_bytes(size)}, {format_bytes(files * size)} in all"
    if "://" in storage:
        return f"{said}, at {storage}"
    place = next(folder for folder in (Path(storage), *Path(storage).parents) if folder.exists())
    free = shutil.disk_usage(place).free
    if files * size > free:
        raise InputError(
            f"{said}; {place} has {format_bytes(free)} free: make room, take another --out or --storage, or lower study.trials"
        )
    return f"{said}; {format_bytes(free)} are free"


def format_bytes(size: float) -> str:
    """Bytes for people."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


class Retention:
    """Deletes the checkpoints that no trial needs any more.

    A running or a failed trial keeps its last two, each of best_model.pth and, where that is newer, latest.pth. A
    finished one keeps its best_model.pth, and so does a stopped one among the best keep_top of all. Other stopped ones
    keep nothing.

    On a local storage Ray itself keeps two of each running trial. On a URI it keeps all of them, and those that no
    snapshot needs are deleted here: call tidy with what the snapshot knows.
    """

    def __init__(self, run: Run) -> None:
        self.files, base = fs.FileSystem.from_uri(run.storage)
        self.base, self.keep_top = base.rstrip("/"), run.config.resources.keep_top
        self.attempts: list[str] = run.config.record["attempts"]
        self.thins = "://" in run.storage
        self.thinned: dict[int, str] = {}  # a trial's last checkpoint when its older ones were deleted
        self.settled: set[int] = set()  # trials of which nothing is left to delete, whatever comes
        self.trimmed: set[int] = set()  # of which nothing is, as long as they are among the best

    def apply(self, run: Run) -> None:
        """Bring the disk up to date with the run."""
        top = {trial.number for trial in run.ranking[: max(1, self.keep_top)]}  # RUN/best is made of the first
        for trial in run.trials:
            if trial.imported_from or trial.checkpoint is None or trial.number in self.settled:
                continue
            if trial.state not in (TrialState.COMPLETE, TrialState.PRUNED):
                if self.thins and self.thinned.get(trial.number) != trial.checkpoint:
                    self.prune_running(trial.checkpoint)
                    self.thinned[trial.number] = trial.checkpoint
                continue
            finished, among = trial.state == TrialState.COMPLETE, trial.number in top
            if among and trial.number in self.trimmed:
                continue
            if self.prune_ended(trial, keep_best=finished or among):
                (self.settled if finished or not among else self.trimmed).add(trial.number)

    def prune_running(self, last: str) -> None:
        """Of the attempt that a trial's last known checkpoint is of, keep that and one before it; newer ones stay."""
        home = f"{self.base}/{PurePosixPath(last).parent}"
        older = [path for path in self.folders_in(home) if path < f"{self.base}/{last}"]
        for folder in older[: 1 - NUM_TO_KEEP]:
            self.files.delete_dir(folder)

    def prune_ended(self, trial: TrialResult, *, keep_best: bool) -> bool:
        """Delete what a trial that has ended can do without; False where its last checkpoint is not on record yet."""
        folders = self.folders_of(trial)
        last = f"{self.base}/{trial.checkpoint}"
        if keep_best and folders and folders[-1] != last:
            return False
        for folder in folders:
            if not keep_best or folder != last:
                self.files.delete_dir(folder)
        if keep_best:
            for info in self.files.get_file_info(fs.FileSelector(last, allow_not_found=True)):
                if info.base_name != checkpoint.BEST:
                    self.files.delete_file(info.path)
        return True

    def folders_of(self, trial: TrialResult) -> list[str]:
        """A trial's checkpoint folders in the attempts of this run, oldest first; other runs may share its storage."""
        homes = [f"{self.base}/{attempt}/{trial.number:04d}" for attempt in self.attempts]
        return [path for home in homes for path in self.folders_in(home)]

    def folders_in(self, home: str) -> list[str]:
        """The checkpoint folders in one of them, oldest first."""
        listing = self.files.get_file_info(fs.FileSelector(home, allow_not_found=True))
        return sorted(info.path for info in listing if info.base_name.startswith("checkpoint_"))
