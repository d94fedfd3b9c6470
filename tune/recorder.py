"""Writes what the driver hears of trials: RUN/trials, RUN/best, the live table."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from ray import tune as ray_tune
from ray.tune.experiment import Trial
from ray.tune.result import AUTO_RESULT_KEYS

from trainable.config import InputError
from trainable.logs import RunLog
from trainable.options import dump_yaml
from trainable.parallel import Behind
from tune.ending import Ending
from tune.journal import Journal
from tune.progress import LiveTable
from tune.results import Run, TrialResult, summarise, update_best
from tune.retention import Retention
from tune.snapshot import Snapshot

NOT_METRICS = {*AUTO_RESULT_KEYS, "done", "trial_id", "should_checkpoint", "experiment_tag", "log", "device"}


def metrics_of(result: dict[str, Any]) -> dict[str, Any]:
    """What a trial reported, without what Ray adds: times of its own, and the whole config."""
    return {name: value for name, value in result.items() if name not in NOT_METRICS and "/" not in name}


def local_folder(path: str) -> Any:
    """A context manager: the local folder of a checkpoint's path or URI."""
    return ray_tune.Checkpoint(path).as_directory()


def bring_up_to_date(run: Run, snapshot: Snapshot, retention: Retention) -> None:
    """Bring the snapshot, RUN/best and the checkpoints up to date with a run.

    No checkpoint is deleted that a snapshot may name which knows less than the journal.
    """
    known = snapshot.update()
    update_best(run, local_folder)
    if known:
        retention.tidy(run)


class Recorder(ray_tune.Callback):
    """Called by Ray in the driver."""

    def __init__(self, run: Run, journal: Journal, table: LiveTable, ending: Ending, snapshot: Snapshot) -> None:
        self.run, self.journal, self.table, self.ending, self.snapshot = run, journal, table, ending, snapshot
        self.retention = Retention(run)
        self.behind, self.stale = Behind(), False
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
        """Say so."""
        self.finish(trial)

    def finish(self, trial: Trial) -> None:
        """Let go of a trial's logs and say how it ended."""
        number, run = trial.config["number"], self.current()
        self.logs.pop(number, None)
        self.table.ended(run.trial(number), run)
        self.stale = True

    def bring_up_to_date(self, run: Run) -> None:
        """What bring_up_to_date does; a sweep goes on where it cannot."""
        try:
            bring_up_to_date(run, self.snapshot, self.retention)
        except (OSError, InputError) as error:  # a full disk, say: the trial's own checkpoint is safe
            self.table.say(f"{run.folder}/best and the checkpoints are not up to date: {error}")

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Refresh the table, and behind the sweep RUN/best, the checkpoints and the snapshot: that may take seconds."""
        if self.table.due():
            self.table.refresh(self.current())
        if (self.stale or self.snapshot.due()) and self.behind.idle:
            self.stale = False
            self.behind.start(partial(self.bring_up_to_date, self.current()))
