"""Ends trials that have hung."""

from __future__ import annotations

import time
from typing import Any

import ray
from ray import tune as ray_tune
from ray.tune.experiment import Trial

from tune.run.report import LiveTable, duration
from tune.search.journal import Journal


class HangWatchdog(ray_tune.Callback):
    """Kills the process of a trial that has reported nothing for too long; the trial has then failed for good."""

    def __init__(self, journal: Journal, timeout: float | None, table: LiveTable) -> None:
        self.journal, self.timeout, self.table = journal, timeout, table
        self.last_report: dict[str, float] = {}  # when each running trial started or last reported
        self.last_check = 0.0

    def __getstate__(self) -> dict[str, Any]:
        """Nothing for Ray's snapshot of its tuner, which voxtune never reads."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A trial starts, or is restored."""
        self.last_report[trial.trial_id] = time.monotonic()

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """A trial lives."""
        self.last_report[trial.trial_id] = time.monotonic()

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Look for trials that have been silent for too long."""
        now = time.monotonic()
        if self.timeout is None or now < self.last_check + 1:  # it looks through all trials
            return
        self.last_check = now
        for trial in trials:
            silent = now - self.last_report.get(trial.trial_id, now)
            actor = trial.temporary_state.ray_actor
            if trial.status == Trial.RUNNING and silent > self.timeout and actor is not None:
                self.kill(trial, actor, silent)

    def kill(self, trial: Trial, actor: Any, silent: float) -> None:
        """Kill a trial's process, without another try."""
        number = trial.config["number"]
        text = f"no report for {duration(silent)}, more than resources.report_timeout: taken for hung"
        self.table.say(f"trial {number}: {text}; its process is ended")
        self.journal.record_hung(number, text)
        self.last_report.pop(trial.trial_id)
        trial.max_failures = 0
        ray.kill(actor)
