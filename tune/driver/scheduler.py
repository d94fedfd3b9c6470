"""Early stopping as a Ray Tune scheduler."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from tune.search.asha import cutoff
from tune.search.journal import CONTINUE, STOP, Journal
from tune.spec.sweep_config import SweepConfig


class RungScheduler(FIFOScheduler):
    """Stops a trial that reaches a rung with a score below a quantile of those there before it.

    With fewer than `min_trials` there before it, a trial goes on. The value at a rung is the best score up to it, since
    that is what a trial is judged by in the end. Each decision is in the journal before it is returned, and read back
    from there. There is one bracket, and nothing is random.
    """

    def __init__(self, journal: Journal, config: SweepConfig, write: Callable[[int, dict[str, Any]], None]) -> None:
        """write: called with each report and its trial's number, before the journal knows of it."""
        super().__init__()
        self.journal, self.stopping, self.write = journal, config.early_stopping, write
        self.rungs: dict[int, dict[int, float]] = {rung: {} for rung in config.rungs}
        for trial in journal.trials():
            for rung, record in trial.user_attrs.get("rungs", {}).items():
                self.rungs.setdefault(int(rung), {})[trial.number] = record["value"]

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Called by Ray with each report of a trial, whose checkpoint is on disk by then.

        What is written first is written again where a kill comes between: a restored trial repeats its last report.
        """
        number = trial.config["number"]
        if result.get("fresh_process"):
            trial.max_failures += 1  # the restart that it asks for is no failure of the trial
        self.write(number, result)
        self.journal.record(number, result, checkpoint_of(trial, result))
        return TrialScheduler.STOP if self.decide(number, result) == STOP else TrialScheduler.CONTINUE

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """Called by Ray before the searcher hears that a trial failed: the only one of its calls with the error."""
        self.journal.record_error(trial.config["number"], Path(trial.error_file).read_text())

    def decide(self, number: int, row: dict[str, Any]) -> str:
        """STOP or CONTINUE. A report that is repeated gets the decision that it got before."""
        if row["end_reason"]:
            return CONTINUE  # it ends by itself
        epoch = int(row["epoch"])
        known = self.journal.attrs(number).get("rungs", {}).get(str(epoch))
        if known is not None:
            return str(known["decision"])
        if epoch not in self.rungs:
            return CONTINUE
        value, rung = float(row["best_score"]), self.rungs[epoch]
        decision = STOP if value < cutoff(list(rung.values()), self.stopping) else CONTINUE
        self.journal.record_rung(number, epoch, value, decision)
        rung[number] = value
        return decision


def checkpoint_of(trial: Trial, result: dict[str, Any]) -> str | None:
    """Where the checkpoint of a report lies, below the run's storage; None for a report without."""
    if not (name := result.get("checkpoint_dir_name")):
        return None
    folder = Path(trial.storage.trial_fs_path).relative_to(trial.storage.storage_fs_path)
    return (folder / name).as_posix()
