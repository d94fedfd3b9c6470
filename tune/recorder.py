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

from trainable import checkpoint
from trainable.config import InputError
from trainable.logs import RunLog
from trainable.options import dump_yaml
from trainable.parallel import Behind
from tune.ending import Ending
from tune.journal import Journal
from tune.progress import LiveTable
from tune.results import Run, TrialResult, place_in, recipe_text, summarise
from tune.retention import Retention
from tune.snapshot import Snapshot

PAUSE = 1.0  # seconds between two times that RUN is brought up to date, at least
RETRY = 30.0  # seconds
NOT_METRICS = {*AUTO_RESULT_KEYS, "done", "trial_id", "should_checkpoint", "experiment_tag", "log", "device"}


def metrics_of(result: dict[str, Any]) -> dict[str, Any]:
    """What a trial reported, without what Ray adds: times of its own, and the whole config."""
    return {name: value for name, value in result.items() if name not in NOT_METRICS and "/" not in name}


def bring_up_to_date(run: Run, snapshot: Snapshot, retention: Retention) -> bool:
    """Bring the snapshot, the checkpoints and RUN/best up to date with a run; False where the winner is on its way.

    No checkpoint is deleted that a snapshot may name which knows less than the journal.
    """
    if snapshot.update():
        retention.tidy(run)
    return update_best(run)


def update_best(run: Run) -> bool:
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
        with ray_tune.Checkpoint(place_in(run.storage, best.checkpoint)).as_directory() as source:
            model = Path(source) / checkpoint.BEST
            if checkpoint.epoch_of(model) not in (0, best.best_epoch):
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

    def __init__(self, run: Run, journal: Journal, table: LiveTable, ending: Ending, snapshot: Snapshot) -> None:
        self.run, self.journal, self.table, self.ending, self.snapshot = run, journal, table, ending, snapshot
        self.retention = Retention(run)
        self.behind, self.said = Behind(), ""
        self.begun, self.due = -math.inf, math.inf  # when RUN was last, and is next to be, brought up to date
        self.logs: dict[int, RunLog] = {}
        self.ended: dict[int, TrialResult] = {}  # trials that change no more

    def __getstate__(self) -> dict[str, object]:
        """Nothing for Ray's snapshot of its tuner, which voxtune never reads."""
        return {}

    def current(self) -> Run:
        """The run as it is now."""
        trials = []
        for trial in self.journal.trials():
            result = self.ended.get(trial.number) or summarise(trial, self.run.study)
            if trial.state.is_finished():
                self.ended[trial.number] = result
            trials.append(result)
        return Run(self.run.folder, self.run.study, trials)

    def folder(self, number: int) -> Path:
        """The folder of a trial's files, made where it is not there."""
        folder = self.run.folder_of(number)
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
        self.ending.failed(trial.config["number"])

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Announce its end."""
        self.finish(trial)

    def finish(self, trial: Trial) -> None:
        """Let go of a trial's logs and announce its end."""
        number, run = trial.config["number"], self.current()
        self.logs.pop(number, None)
        self.table.ended(run.trial(number), run)
        self.due = min(self.due, self.begun + PAUSE)

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Refresh the table, and behind the sweep RUN/best, the checkpoints and the snapshot: that may take seconds."""
        if self.table.due():
            self.table.refresh(self.current())
        now = time.monotonic()
        if (now >= self.due or self.snapshot.due()) and self.behind.idle:
            self.begun, self.due = now, math.inf
            self.behind.start(partial(self.try_to_bring_up_to_date, self.current()))

    def try_to_bring_up_to_date(self, run: Run) -> None:
        """As bring_up_to_date; where it cannot, the sweep goes on, and it is tried again later."""
        done, said = False, ""
        try:
            done = bring_up_to_date(run, self.snapshot, self.retention)
        except Exception as error:  # a full disk, a storage that does not answer: the trials' own checkpoints are safe
            said = f"{run.folder}/best and the checkpoints are not up to date: {error}"
        if said and said != self.said:
            self.table.say(said)
        self.said = said
        if not done:
            self.due = min(self.due, time.monotonic() + RETRY)
