"""Early stopping as a Ray Tune scheduler."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from tune.driver.cluster import ray_compat
from tune.search.asha import CONTINUE, Decision, Rungs, rung_epochs
from tune.search.journal import Journal
from tune.search.promotion import OnDecision
from tune.search.trial_progress import find_default, known_scores, rung_decisions
from tune.spec.sweep_config import SweepConfig
from tune.spec.trial_spec import Report

OnReport = Callable[[int, Report, str], None]  # trial's number, report, STOP, CONTINUE or PAUSE


class RungScheduler(FIFOScheduler):
    """Stops a trial that reaches a rung with a score below a quantile of the scores of earlier trials at that rung.

    If too few trials were at the rung before, the trial goes on. Each decision is in the journal before it is returned,
    and a resumed sweep reads it from the journal. There is one bracket. The trial of the default recipe and the trials
    that the audit draws are not stopped; see Rungs. A trial that pauses at a rung ends for Ray; OptunaSearcher hands it
    out again.
    """

    def __init__(
        self,
        journal: Journal,
        config: SweepConfig,
        write: Callable[[int, Report], None],
        attempt: str = "",
        on_report: OnReport | None = None,
        on_decision: OnDecision = lambda *_: None,
    ) -> None:
        """Read the rungs from the journal.

        Args:
            write: called with each report and its trial's number, before it is in the journal.
            attempt: folder below the run's storage that Ray writes the checkpoints of this launch or resume into.
            on_report: called with each report after the decision.
            on_decision: called with each new decision at a rung, once it is in the journal.
        """
        super().__init__()
        self.journal, self.config = journal, config
        self.write, self.attempt, self.on_report = write, attempt, on_report
        self.on_decision = on_decision
        self.rungs, self.epochs = Rungs(config), set(rung_epochs(config))
        self.default: int | None = None  # number of the trial of the default recipe, once it is handed out
        for trial in journal.trials():
            for epoch, score in sorted(known_scores(trial).items()):
                self.rungs.observe(trial.number, epoch, score)
            for epoch, decided in sorted(rung_decisions(trial.user_attrs).items()):
                self.rungs.add(trial.number, epoch, decided)

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """Return the first trial that waits for a process. Called by Ray after each event.

        Ray's own looks through all trials, also those that have ended; none of voxtune's is ever PAUSED for Ray.
        """
        waiting = [trial for trial in tune_controller.get_live_trials() if trial.status == Trial.PENDING]
        return min(waiting, key=lambda trial: trial.config["number"], default=None)

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Record a report and decide. Called by Ray when the report's checkpoint is in the storage.

        `write` is called before the report is in the journal. If a kill comes between, the restored trial repeats the
        report, so that it is written again.
        """
        number, report = trial.config["number"], cast(Report, result)
        if report.get("fresh_process"):  # the restart that the trial asks for is no failure
            ray_compat.allow_one_more_restart(trial)
        self.write(number, report)
        if report.get("sign_of_life"):
            return TrialScheduler.CONTINUE
        self.journal.record(number, report, report.get("went_back_to") or self.checkpoint_path(number, result))
        decision = self.decide(number, report)
        if self.on_report is not None:
            self.on_report(number, report, decision)
        return TrialScheduler.CONTINUE if decision == CONTINUE else TrialScheduler.STOP

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """Record the error of a trial, also if the trial is then restarted.

        Called by Ray before the searcher, which does not get the error.
        """
        self.journal.record_error(trial.config["number"], Path(trial.error_file).read_text())

    def decide(self, number: int, report: Report) -> Decision:
        """Return STOP, CONTINUE or PAUSE, and record a new decision at a rung.

        A repeated report gets the same decision as before. A last report, and one that is not at a rung, gets CONTINUE.
        """
        epoch, score = int(report["epoch"]), self.config.objective.score
        if score in report:
            self.rungs.observe(number, epoch, float(cast(dict[str, Any], report)[score]))
        if report["end_reason"]:
            return CONTINUE  # it ends by itself
        known = rung_decisions(self.journal.attrs(number)).get(epoch)
        if known is not None:
            return known.decision
        if epoch not in self.epochs:
            return CONTINUE
        if self.default is None:
            self.default = find_default(self.journal.trials(), self.config)
        value = self.rungs.value(number, epoch, float(report["best_score"]))
        decided = self.rungs.decide(number, epoch, value, default=number == self.default)
        self.journal.record_rung(number, epoch, decided)
        self.rungs.add(number, epoch, decided)
        self.on_decision(number, epoch, decided)
        return decided.decision

    def checkpoint_path(self, number: int, result: dict[str, Any]) -> str | None:
        """Return the path of a report's checkpoint below the run's storage; None for a report without a checkpoint."""
        name = ray_compat.checkpoint_name(result)
        return f"{self.attempt}/{number:04d}/{name}" if name else None
