"""When and how a sweep ends before its last trial."""

from __future__ import annotations

import time
from typing import Any, cast

from ray import tune as ray_tune

from trainable.core.logger import logger
from trainable.core.signals import handle_end_signals
from trainable.training.epoch_result import EndReason
from tune.driver.cluster.signal_handling import SignalHandling
from tune.driver.scheduling.storage_watch import StorageWatch
from tune.run.expected_gain import enough_reached
from tune.run.results import Run
from tune.run.run_dir import resume_command
from tune.spec.trial_spec import Report
from tune.terminal.sweep_header import best_text
from tune.terminal.tables import summary_line


class SignalKeeper(ray_tune.Callback):
    """Handles signals in place of Ray, which takes SIGUSR1 for itself when it starts, and then ends without a word."""

    def __init__(self, stopper: SweepStopper) -> None:
        self.stopper = stopper

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing for Ray's snapshot of its tuner, which voxtune never reads."""
        return {}

    def setup(self, *_: Any, **info: Any) -> None:
        """Handle signals again. Called by Ray once its own handlers are set."""
        if not self.stopper.signal:
            handle_end_signals(self.stopper.note)


class SweepStopper(SignalHandling, ray_tune.Stopper):
    """Ends a sweep, so that it can be resumed: at a signal, a spent budget, a reached target, enough gain or an error.

    Errors are a full disk, a GPU that torch does not see, changed cases, a cache or checkpoints that are gone, a lost
    cluster, and with fail_fast a failed trial. run: as it is before the sweep goes on; the GPU hours that its trials
    have taken count.
    """

    def __init__(self, run: Run, storage: StorageWatch) -> None:
        super().__init__()
        self.config, self.run, self.storage = run.config, run, storage
        self.started = time.monotonic()
        self.gpu_seconds = sum(trial.gpu_seconds for trial in run.own_trials)
        self.best = max((trial.score or 0.0 for trial in run.own_trials if trial.finished), default=0.0)
        self.enough = enough_reached(run)

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing for Ray's snapshot of its tuner, which voxtune never reads."""
        return {}

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Count a report; returns False, since no trial is stopped here. Called by Ray before the scheduler.

        Ray calls it with the last report again, marked as done, when the trial has ended.
        """
        if result.get("done"):
            return False
        report = cast(Report, result)
        self.error = self.error or report.get("sweep_error", "")
        self.gpu_seconds += report["time_this_iter_s"] * self.config.resources.all_gpus
        if report["end_reason"] in (EndReason.EPOCHS, EndReason.PATIENCE):
            self.best = max(self.best, report["best_score"])
        return False

    def failed(self, number: int) -> None:
        """End the sweep if fail_fast is set. To be called after trial `number` has failed and is not restarted."""
        if self.config.resources.fail_fast:
            self.error = f"fail_fast: trial {number} failed, see {self.run.dir.trial(number).error}"

    def trial_ended(self, run: Run) -> None:
        """Note whether study.enough ends the sweep, once a trial has ended; run: as it is then."""
        self.enough = enough_reached(run)

    def stop_all(self) -> bool:
        """Return whether the sweep ends now. Called by Ray after each event."""
        self.error = self.error or self.storage.lost()
        return bool(self.reason())

    def reason(self) -> str:
        """Return why the sweep ends before its last trial; "" while it goes on."""
        budget = self.config.budget
        if self.signal:
            return self.signal_name
        if self.error:
            return self.error
        if spent := self.spent_budget():
            return spent
        if budget.target is not None and self.best >= budget.target:
            return f"study.target: a finished trial has {self.best:.4f}, and {budget.target:g} was requested"
        return self.enough

    def spent_budget(self) -> str:
        """Return which budget is spent, in words; "" if none is."""
        budget = self.config.budget
        if budget.time_budget is not None and time.monotonic() - self.started > budget.time_budget:
            return "study.time_budget, which is over"
        if budget.gpu_hours is not None and self.gpu_seconds >= budget.gpu_hours * 3600:
            return f"study.gpu_hours: {self.gpu_seconds / 3600:.2f} of {budget.gpu_hours:g} are spent"
        return ""

    def why_ended(self, run: Run) -> str:
        """Return why the sweep has ended; run: as it is at the end."""
        if not run.unfinished:
            return f"all {len(run.own_trials)} trials have ended"
        return f"stopped by {self.reason() or 'Ray, before the last trial'}"

    def message(self) -> str:
        """Return why the sweep ended and how to go on, as printed at its end."""
        reason = self.reason()
        needs_change = reason.startswith(("study.gpu_hours", "study.target", "study.enough"))
        change = ", with another --set study.KEY=VALUE" if needs_change else ""
        command = resume_command(self.run.folder, notify=self.config.record.notify)
        return f"stopped by {reason}; go on with: {command}{change}"

    def exit(self, run: Run) -> None:
        """Print why the sweep ended before its last trial, and how to go on; nothing if all trials have ended.

        After a signal or an error the counts of its trials and the best one are printed first.

        Args:
            run: as it is at the end.

        Raises:
            SystemExit: after a signal with 128 + its number, after an error with 1.
        """
        if run.unfinished and not self.reason():
            self.error = "Ray, before the last trial"
        if self.signal or self.error:  # nothing else tells then how far it is
            logger.info(f"{run.folder.name}: {summary_line(run)}; {best_text(run)}")
        if self.reason() and (self.signal or self.error or run.unfinished):
            logger.info(self.message())
        self.exit_if_ended_early()
