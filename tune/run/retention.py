"""Which checkpoints of a sweep stay on disk, and how much space they need."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path, PurePosixPath

from optuna.trial import TrialState
from pyarrow import fs

from trainable.core.errors import InputError
from trainable.training.training_dir import BEST
from tune.run.results import Run, TrialResult
from tune.spec.sweep_config import SweepConfig

NUM_TO_KEEP = 2  # checkpoint folders of a running trial; each has best_model.pth, and latest.pth if that is newer
CHECKPOINT_BYTES_PER_PARAMETER = 3 * 4  # float32 weights and the two moments of Adam
AVERAGE_BYTES_PER_PARAMETER = 4  # of the weights' moving average


def check_disk_space(config: SweepConfig, storage: str, slots: int) -> str:
    """Return a line on the space that a sweep's checkpoints need at most if all trials have trial 0's network.

    Args:
        storage: folder or URI of the checkpoints; the space at a URI is not checked.
        slots: number of trials that can run at once.

    Raises:
        InputError: if the disk of a folder has less free.
    """
    files, size = checkpoint_files(config, slots)
    need = f"checkpoints: at most {files} of {format_bytes(size)}, {format_bytes(files * size)} in all"
    if "://" in storage:
        return f"{need}, at {storage}"
    folder = next(folder for folder in (Path(storage), *Path(storage).parents) if folder.exists())
    free = shutil.disk_usage(folder).free
    if files * size > free:
        raise InputError(
            f"{need}; {folder} has {format_bytes(free)} free: make room, take another --out or --storage, "
            "or lower study.trials"
        )
    return f"{need}; {format_bytes(free)} are free"


def checkpoint_files(config: SweepConfig, slots: int) -> tuple[int, int]:
    """Return how many checkpoint files a sweep has at most, and the bytes of each with trial 0's network.

    slots: number of trials that can run at once.
    """
    from trainable.model.unet3d import count_parameters  # here: torch takes seconds to import

    recipe = config.base_config()
    averaged = bool(recipe.ema_decay) or any(option.name == "ema_decay" for option in config.space.parameters)
    size = count_parameters(recipe) * (CHECKPOINT_BYTES_PER_PARAMETER + AVERAGE_BYTES_PER_PARAMETER * averaged)
    trials, running = config.budget.trials, min(slots, config.budget.trials)
    ended = 2 * trials if config.early_stopping.type == "promote" else trials  # paused ones keep a whole checkpoint
    files = 2 * NUM_TO_KEEP * running + ended + 1  # and RUN/best
    return files, size


def format_bytes(size: float) -> str:
    """Return a number of bytes as text in MiB, from 1 GiB on in GiB."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


class Retention:
    """Deletes the checkpoints that no trial needs any more.

    A trial that runs, failed or is outside a changed space keeps its last two checkpoints, each of best_model.pth and,
    if that is newer, latest.pth; a paused one keeps the last. A complete trial keeps its best_model.pth, and so does a
    stopped one that is the winner or among the first keep_top of Run.ranking. Other stopped trials keep nothing, no
    pictures either. Imported trials are skipped.

    On a local storage Ray itself deletes a running trial's older checkpoints of this attempt when it writes the next.
    On a URI Ray keeps all, because a snapshot may name an old one; there `apply` deletes them, and everywhere those of
    earlier attempts. Call it only after a snapshot of this state of the run, or of a later one, was uploaded.
    """

    def __init__(self, run: Run) -> None:
        self.files, base = fs.FileSystem.from_uri(run.storage)
        self.base, self.keep_top = base.rstrip("/"), run.config.resources.keep_top
        self.attempts = run.config.record.attempts
        self.prunes_running = "://" in run.storage
        # trial -> its last checkpoint when its older ones were deleted, and whether it was paused then
        self.pruned_up_to: dict[int, tuple[str, bool]] = {}
        self.settled: set[int] = set()  # trials with nothing left to delete, regardless of the others
        self.settled_in_top: set[int] = set()  # trials with nothing left to delete while they are among the best

    def apply(self, run: Run) -> None:
        """Delete the checkpoints that the trials of a run do not need, given their states in `run`."""
        top = {trial.number for trial in run.ranking[: max(1, self.keep_top)]}  # RUN/best is made of the first
        for trial in run.trials:
            if trial.imported_from or trial.checkpoint is None or trial.number in self.settled:
                continue
            if trial.state not in (TrialState.COMPLETE, TrialState.PRUNED):
                keep, pruned = 1 if trial.paused else NUM_TO_KEEP, (trial.checkpoint, trial.paused)
                needed = self.prunes_running or trial.paused or len(self.attempts) > 1
                if needed and self.pruned_up_to.get(trial.number) != pruned:
                    self.prune_running(trial, trial.checkpoint, keep)
                    self.pruned_up_to[trial.number] = pruned
                continue
            finished, in_top = trial.state == TrialState.COMPLETE, trial.number in top
            if in_top and trial.number in self.settled_in_top:
                continue
            if not (finished or in_top):
                shutil.rmtree(run.dir.trial(trial.number).pictures, ignore_errors=True)
            if self.prune_ended(trial, keep_best=finished or in_top):
                (self.settled if finished or not in_top else self.settled_in_top).add(trial.number)

    def prune_running(self, trial: TrialResult, last: str, keep: int) -> None:
        """Delete a trial's checkpoints that are older than `last`, so that at least `keep` are left.

        last: path of a checkpoint below the storage; nothing is deleted if it is not there.
        """
        folders = self.folders_of(trial)
        places = list(dict.fromkeys(place_of(folder) for folder in folders))  # oldest first
        newest = place_of(f"{self.base}/{last}")
        older = places[: places.index(newest)] if newest in places else []
        for folder in folders:
            if place_of(folder) in older[: len(older) + 1 - keep]:
                self.delete(folder)

    def prune_ended(self, trial: TrialResult, *, keep_best: bool) -> bool:
        """Delete an ended trial's checkpoints; keep_best: except the best_model.pth in the last one.

        Returns:
            False if keep_best and the storage has a newer checkpoint than `trial` names: nothing is deleted then.
        """
        folders = self.folders_of(trial)
        last = f"{self.base}/{trial.checkpoint}"
        if keep_best and folders and (last not in folders or place_of(folders[-1]) != place_of(last)):
            return False
        for folder in folders:
            if not keep_best or folder != last:
                self.delete(folder)
        if keep_best:
            for info in self.files.get_file_info(fs.FileSelector(last, allow_not_found=True)):
                if info.base_name != BEST:
                    self.files.delete_file(info.path)
        return True

    def delete(self, folder: str) -> None:
        """Delete a folder, which Ray may be deleting too."""
        with suppress(FileNotFoundError):
            self.files.delete_dir(folder)

    def folders_of(self, trial: TrialResult) -> list[str]:
        """Return a trial's checkpoint folders in the attempts of this run, oldest first.

        Folders of other runs are left out: several runs may share one storage.
        """
        trial_folders = [f"{self.base}/{attempt}/{trial.number:04d}" for attempt in self.attempts]
        return [path for folder in trial_folders for path in self.folders_in(folder)]

    def earlier(self, number: int, newest: str) -> list[str]:
        """Return the paths below the storage of a trial's checkpoints that are older than `newest`, newest first."""
        last, trial_folder = newest.partition("/")[0], f"{number:04d}"
        before = self.attempts[: self.attempts.index(last)] if last in self.attempts else self.attempts
        folders = [self.folders_in(f"{self.base}/{attempt}/{trial_folder}") for attempt in (*before, last)]
        paths = [folder.removeprefix(f"{self.base}/") for of_attempt in folders for folder in of_attempt]
        return [path for path in reversed(paths) if path.partition("/")[0] != last or path < newest]

    def folders_in(self, trial_folder: str) -> list[str]:
        """Return the checkpoint folders in a trial's folder of one attempt, oldest first; none if that is missing."""
        listing = self.files.get_file_info(fs.FileSelector(trial_folder, allow_not_found=True))
        return sorted(info.path for info in listing if info.base_name.startswith("checkpoint_"))


def place_of(folder: str) -> str:
    """Return the path of a checkpoint's folder up to its number in its trial.

    Two folders have the same if a process wrote one that had been given up as lost, see ray_compat.
    """
    path = PurePosixPath(folder)
    return str(path.with_name("_".join(path.name.split("_")[:2])))
