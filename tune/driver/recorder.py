"""Writes what the driver hears of trials: RUN/trials, RUN/best, the live table."""

from __future__ import annotations

import math
import shutil
import time
from functools import partial
from pathlib import Path
from typing import Any

from optuna.trial import TrialState
from ray import tune as ray_tune
from ray.tune.experiment import Trial
from ray.tune.result import AUTO_RESULT_KEYS

from trainable.core.errors import InputError
from trainable.core.options import dump_yaml
from trainable.core.workers import BackgroundWorker
from trainable.training import checkpoint
from trainable.training.run_log import RunLog
from tune.driver.stopping import SweepStopper
from tune.run.report import LiveTable
from tune.run.results import Run, TrialResult, recipe_text, resolve_checkpoint, summarise
from tune.run.retention import Retention
from tune.run.snapshot import Snapshot
from tune.search.journal import Journal

PAUSE = 1.0  # seconds between two times that RUN is brought up to date, at least
RETRY = 30.0  # seconds
RAY_RESULT_KEYS = {*AUTO_RESULT_KEYS, "done", "trial_id", "should_checkpoint", "experiment_tag", "log", "device"}


def metrics_of(result: dict[str, Any]) -> dict[str, Any]:
    """What a trial reported, without what Ray adds: times of its own, and the whole config."""
    return {name: value for name, value in result.items() if name not in RAY_RESULT_KEYS and "/" not in name}


def sync_outputs(run: Run, snapshot: Snapshot, retention: Retention) -> bool:
    """Bring the snapshot, the checkpoints and RUN/best up to date with a run; False where the winner is on its way.

    No checkpoint is deleted that a snapshot may name which knows less than the journal.
    """
    if snapshot.update():
        retention.apply(run)
    return sync_best(run)


def sync_best(run: Run) -> bool:
    """Bring RUN/best up to date with the winner; False where its checkpoint is still on the way."""
    if not run.ranking:
        return True
    best, folder = run.best(), run.folder / "best"
    text = recipe_text(run, best)
    config = folder / "config.yaml"
    if best.checkpoint is None or (config.exists() and config.read_text() == text):
        return True
    folder.mkdir(exist_ok=True)
    try:
        with ray_tune.Checkpoint(resolve_checkpoint(run.storage, best.checkpoint)).as_directory() as source:
            model = Path(source) / checkpoint.BEST
            if checkpoint.read_epoch(model) not in (0, best.best_epoch):
                return False
            checkpoint.load_checkpoint(model)  # whole?
            aside = folder / f".{checkpoint.BEST}"
            shutil.copyfile(model, aside)
            aside.replace(folder / checkpoint.BEST)
    except (FileNotFoundError, InputError):
        if best.state == TrialState.RUNNING:  # Ray keeps its newest two
            return False
        raise
    config.write_text(text)
    return True


class Recorder(ray_tune.Callback):
    """Called by Ray in the driver."""

    def __init__(self, run: Run, journal: Journal, table: LiveTable, stopper: SweepStopper, snapshot: Snapshot) -> None:
        self.run, self.journal, self.table, self.stopper, self.snapshot = run, journal, table, stopper, snapshot
        self.retention = Retention(run)
        self.worker, self.last_warning = BackgroundWorker(), ""
        self.last_sync, self.next_sync = -math.inf, math.inf  # when RUN was last, and is next to be, brought up to date
        self.logs: dict[int, RunLog] = {}
        self.ended: dict[int, TrialResult] = {}  # trials that change no more

    def __getstate__(self) -> dict[str, object]:
        """Nothing for Ray's snapshot of its tuner, which voxtune never reads."""
        return {}

    def read_current(self) -> Run:
        """The run as it is now."""
        trials = []
        for trial in self.journal.trials():
            result = self.ended.get(trial.number) or summarise(trial, self.run.config)
            if trial.state.is_finished():
                self.ended[trial.number] = result
            trials.append(result)
        return Run(self.run.folder, self.run.config, trials)

    def folder(self, number: int) -> Path:
        """The folder of a trial's files, made where it is not there."""
        folder = self.run.trial_dir(number)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Write the trial's recipe."""
        path = self.folder(trial.config["number"]) / "config.yaml"
        path.write_text(dump_yaml(trial.config["recipe"]))

    def write(self, number: int, result: dict[str, Any]) -> None:
        """Write a report to metrics.csv, TensorBoard and stdout.log."""
        folder = self.folder(number)
        with (folder / "stdout.log").open("a") as file:
            file.write(result["log"])
        if "avg_total_loss" not in result:
            return  # out of memory before an epoch ended
        if number not in self.logs:
            self.logs[number] = RunLog(folder)
        self.logs[number].write(metrics_of(result))

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Write error.txt."""
        (self.folder(trial.config["number"]) / "error.txt").write_text(Path(trial.error_file).read_text())
        self.finish(trial)
        self.stopper.failed(trial.config["number"])

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Announce its end."""
        self.finish(trial)

    def finish(self, trial: Trial) -> None:
        """Let go of a trial's logs and announce its end."""
        number, run = trial.config["number"], self.read_current()
        self.logs.pop(number, None)
        self.table.ended(run.trial(number), run)
        self.next_sync = min(self.next_sync, self.last_sync + PAUSE)

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Refresh the table, and behind the sweep RUN/best, the checkpoints and the snapshot: that may take seconds."""
        if self.table.due():
            self.table.refresh(self.read_current())
        now = time.monotonic()
        if (now >= self.next_sync or self.snapshot.due()) and self.worker.idle:
            self.last_sync, self.next_sync = now, math.inf
            self.worker.start(partial(self.sync_in_background, self.read_current()))

    def sync_in_background(self, run: Run) -> None:
        """As sync_outputs; where it cannot, the sweep goes on, and it is tried again later."""
        done, said = False, ""
        try:
            done = sync_outputs(run, self.snapshot, self.retention)
        except Exception as error:  # a full disk, a storage that does not answer: the trials' own checkpoints are safe
            said = f"{run.folder}/best and the checkpoints are not up to date: {error}"
        if said and said != self.last_warning:
            self.table.say(said)
        self.last_warning = said
        if not done:
            self.next_sync = min(self.next_sync, time.monotonic() + RETRY)
