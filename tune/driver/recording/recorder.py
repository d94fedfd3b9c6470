"""Writes the reports of trials into the run's folder: RUN/trials, RUN/best, the live screen."""

from __future__ import annotations

import math
import time
from functools import partial
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState
from ray import tune as ray_tune
from ray.tune.experiment import Trial
from ray.tune.result import AUTO_RESULT_KEYS

from trainable.core.errors import InputError
from trainable.core.files import atomic_write_text, errors_name, link_or_copy
from trainable.core.logger import logger
from trainable.core.option_files import dump_yaml
from trainable.core.parallel import BackgroundWorker
from trainable.training import checkpoint
from trainable.training.training_log import TrainingLog
from tune.confirmation.export import recipe_text
from tune.driver.recording.event_log import EventLog
from tune.driver.recording.live_recorder import LiveRecorder
from tune.driver.scheduling.sweep_stopper import SweepStopper
from tune.run.results import Run, TrialResult, resolve_checkpoint
from tune.run.retention import Retention
from tune.run.run_dir import TrialDir
from tune.run.snapshot import Snapshot
from tune.search.asha import STOP, RungDecision
from tune.search.journal import Journal
from tune.spec.trial_spec import Report
from tune.terminal.live_screen import SweepScreen
from tune.viewers.dashboard_notes import write_notes
from tune.viewers.tensorboard_runs import trial_log

PAUSE_SECONDS = 1.0  # at least between two syncs of RUN
RETRY_SECONDS = 30.0  # after a sync that failed
RAY_RESULT_KEYS = {
    *AUTO_RESULT_KEYS,
    "done",
    "trial_id",
    "should_checkpoint",
    "experiment_tag",
    "log",
    "device",
    "data",
    "case_scores",
    "went_back",
    "went_back_to",
}


class LostCheckpointError(InputError):
    """The checkpoint of the winner, which has ended, is missing or damaged."""


def metrics_of(report: Report) -> dict[str, Any]:
    """Return the row of metrics.csv in a report: without what only the driver reads and what Ray adds."""
    return {name: value for name, value in report.items() if name not in RAY_RESULT_KEYS and "/" not in name}


def sync_outputs(run: Run, snapshot: Snapshot, retention: Retention) -> bool:
    """Bring the snapshot, the checkpoints and RUN/best up to date with a run.

    Checkpoints are deleted only if the snapshot could be brought up to date, since an older snapshot may name them.

    Returns, Raises: as sync_best.
    """
    if snapshot.update():
        retention.apply(run)
    return sync_best(run)


def sync_best(run: Run) -> bool:
    """Bring the winner's recipe and a link to its best checkpoint to RUN/best, unless the recipe is there already.

    Returns:
        False if the checkpoint of the winner's best epoch is not in the storage yet: nothing is copied then. True
        otherwise, also if there is no winner or the winner has no checkpoint.

    Raises:
        LostCheckpointError: if the winner has ended, and its checkpoint is missing or damaged.
    """
    if not run.ranking:
        return True
    best, config, model = run.best(), run.dir.best_config, run.dir.best_model
    text = recipe_text(run, best, run.dir.split.name)
    if best.checkpoint is None or (config.exists() and model.exists() and config.read_text() == text):
        return True
    run.dir.best.mkdir(exist_ok=True)
    try:
        with ray_tune.Checkpoint(resolve_checkpoint(run.storage, best.checkpoint)).as_directory() as source:
            original = Path(source) / model.name
            if checkpoint.read_epoch(original) not in (0, best.best_epoch):
                return False
            checkpoint.load_verified(original, mmap=True)  # fails if it is damaged
            model.unlink(missing_ok=True)  # see CheckpointManager: a rename that replaces it would write it to the disk
            link_or_copy(original, model)
    except (FileNotFoundError, InputError) as error:
        if best.state == TrialState.RUNNING:  # Ray deletes all but its newest two
            return False
        if not (config.exists() and model.exists() and same_but_for_folder(config.read_text(), text)):
            raise LostCheckpointError(f"the checkpoint of trial {best.number}, the winner, is lost ({error})") from None
    config.write_text(text)
    return True


def same_but_for_folder(first: str, second: str) -> bool:
    """Return whether two texts of recipe_text differ at most in the name of the run's folder, which may be moved."""
    one, other = first.partition("\n"), second.partition("\n")
    return one[0].partition(" of ")[0] == other[0].partition(" of ")[0] and one[2] == other[2]


class Recorder(ray_tune.Callback):
    """Writes the files of trials, and syncs RUN/best, the checkpoints and the snapshot in the background."""

    def __init__(
        self,
        run: Run,
        journal: Journal,
        stopper: SweepStopper,
        snapshot: Snapshot,
        screen: SweepScreen,
        live: LiveRecorder,
        events: EventLog,
    ) -> None:
        self.run, self.journal, self.stopper, self.snapshot = run, journal, stopper, snapshot
        self.screen, self.live, self.events = screen, live, events
        self.retention = Retention(run)
        self.worker, self.last_warning = BackgroundWorker(), ""
        self.last_sync, self.next_sync = -math.inf, math.inf  # monotonic seconds
        self.logs: dict[int, TrainingLog] = {}
        self.known: dict[int, tuple[FrozenTrial, TrialResult]] = {}  # what the journal had, and what was read of it

    def __getstate__(self) -> dict[str, object]:
        """Return nothing for Ray's snapshot of its tuner, which voxtune never reads."""
        return {}

    def follow(self, run: Run) -> None:
        """Go on with a run whose trials have another folder for their checkpoints from now on."""
        self.run, self.retention = run, Retention(run)

    def read_current(self) -> Run:
        """Return the run as the journal has it now; only trials that have changed are read again."""
        trials = []
        for frozen in self.journal.trials():
            before, result = self.known.get(frozen.number, (None, None))
            if before is not frozen or result is None:  # the journal replaces a trial that changes by another object
                result = TrialResult.from_frozen(frozen, self.run.config)
                self.known[frozen.number] = frozen, result
            trials.append(result)
        return Run(self.run.dir, self.run.config, trials)

    def trial_dir(self, number: int) -> TrialDir:
        """Return the paths in a trial's folder, which is made if it is missing."""
        paths = self.run.dir.trial(number)
        paths.path.mkdir(parents=True, exist_ok=True)
        return paths

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Write the trial's recipe, and make its stdout.log. Called by Ray when a trial starts or is restored."""
        paths = self.trial_dir(trial.config["number"])
        atomic_write_text(paths.config, dump_yaml(trial.config["recipe"]), fsync=False)
        paths.stdout.touch()

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Note the error after which a trial is started again. Called by Ray once the journal has it."""
        number = trial.config["number"]
        self.events.retried(number, self.journal.attrs(number)["error"])

    def write(self, number: int, report: Report) -> None:
        """Write a report to stdout.log, and if it is of an epoch to the files of a TrainingLog.

        The first report of a process is noted as an event, and that a trial goes back to an earlier epoch. Called by
        RungScheduler.
        """
        paths = self.trial_dir(number)
        with errors_name(paths.stdout), paths.stdout.open("a") as file:
            file.write(report["log"])
        if "host" in report:
            self.events.started(number, report, self.journal.progress(number).epoch)
        if "went_back" in report and report["epoch"] < (epoch := self.journal.progress(number).epoch):
            self.events.went_back(number, report, epoch)
        if "avg_total_loss" not in report:
            return  # it reports no epoch
        if number not in self.logs:
            self.logs[number] = trial_log(self.run.dir, self.run.config, number, self.journal.values(number))
        self.logs[number].write(metrics_of(report), case_rows=report.get("case_scores", ""))

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Write error.txt, announce the end, and end the sweep if fail_fast is set.

        Called by Ray when a trial has failed and is not restarted.
        """
        self.trial_dir(trial.config["number"]).error.write_text(Path(trial.error_file).read_text())
        self.finish(trial.config["number"])
        self.stopper.failed(trial.config["number"])

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Announce the end of a trial that raised no error, and have RUN synced soon. Called by Ray."""
        self.finish(trial.config["number"])

    def promoted(self, number: int, epoch: int, decided: RungDecision) -> None:
        """Announce what was decided on a paused trial, and its end if it is stopped. Called by OptunaSearcher."""
        self.events.promoted(number, epoch, decided)
        if decided.decision == STOP:
            self.finish(number)

    def finish(self, number: int) -> None:
        """Drop a trial's TrainingLog, announce the trial's end, and have RUN synced soon."""
        run = self.read_current()
        trial, log = run.trial(number), self.logs.pop(number, None)
        if log is not None and trial.state.is_finished():  # it may have been interrupted only
            log.end(failed=trial.status in ("failed", "not finite"))
        self.stopper.trial_ended(run)
        write_notes(self.journal, run, [trial])
        self.screen.refresh(run, self.live.state())
        self.events.ended(trial, run)
        self.next_sync = min(self.next_sync, self.last_sync + PAUSE_SECONDS)

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Redraw the screen, at most once a second, and sync RUN in the background. Called by Ray after each event.

        A sync starts only if one is due and none is running.
        """
        if self.screen.due():
            self.screen.refresh(self.read_current(), self.live.state())
        now = time.monotonic()
        if (now >= self.next_sync or self.snapshot.due()) and self.worker.idle:
            self.last_sync, self.next_sync = now, math.inf
            self.worker.start(partial(self.sync_in_background, self.read_current()))

    def sync_in_background(self, run: Run) -> None:
        """Call sync_outputs. If that raises, print why, unless the last call failed alike, and raise nothing.

        The next call is due in RETRY_SECONDS at the latest if this one failed or the winner's checkpoint is not in the
        storage yet.
        """
        done, warning = False, ""
        try:
            done = sync_outputs(run, self.snapshot, self.retention)
        except Exception as error:  # a full disk, a storage that does not answer: the trials' own checkpoints are safe
            warning = f"{run.dir.best} and the checkpoints are not up to date: {error}"
        if warning and warning != self.last_warning:
            logger.warning(warning)
        self.last_warning = warning
        if not done:
            self.next_sync = min(self.next_sync, time.monotonic() + RETRY_SECONDS)
