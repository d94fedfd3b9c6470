"""Ends the processes of trials that have hung; they dump their stacks shortly before, see stack_dump.py.

The driver has to end them. To Ray a process that ends itself (`exit=True` of faulthandler) has failed like any other,
and it decides to restart the trial before it calls the scheduler; and a process that is frozen cannot end itself.
"""

from __future__ import annotations

import time
from typing import Any

import ray
from ray import tune as ray_tune
from ray.tune.experiment import Trial

from trainable.core.console import duration
from trainable.core.logger import logger
from tune.driver.cluster import ray_compat
from tune.search.journal import Journal

OWN_PAUSE_SECONDS = 5.0  # between two events, after which the driver itself was stopped (Ctrl-Z, a paused machine)


class HangWatchdog(ray_tune.Callback):
    """Kills the process of a trial that has reported nothing for too long; the trial has then failed for good.

    Each epoch counts as a report, see TrialReports.on_epoch_end. After a pause of its own the driver, which has read
    no reports meanwhile, waits anew.

    timeout: seconds; None to kill no trial.
    """

    def __init__(self, journal: Journal, timeout: float | None) -> None:
        self.journal, self.timeout = journal, timeout
        self.last_report: dict[str, float] = {}  # when each running trial started or last reported, by Ray's id
        self.last_check = 0.0
        self.last_event = time.monotonic()

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing for Ray's snapshot of its tuner, which voxtune never reads."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Note that a trial starts or is restored. Called by Ray."""
        self.last_report[trial.trial_id] = time.monotonic()

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """Note that a trial has reported. Called by Ray."""
        self.last_report[trial.trial_id] = time.monotonic()

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Kill the trials without a report for longer than the timeout, looking at most once a second.

        Called by Ray after each event.
        """
        now = time.monotonic()
        if now > self.last_event + OWN_PAUSE_SECONDS:
            self.last_report = dict.fromkeys(self.last_report, now)
        self.last_event = now
        if self.timeout is None or now < self.last_check + 1:  # it looks through all trials
            return
        self.last_check = now
        for ray_trial in trials:
            silent = now - self.last_report.get(ray_trial.trial_id, now)
            actor = ray_compat.actor_of(ray_trial)
            if ray_trial.status == Trial.RUNNING and silent > self.timeout and actor is not None:
                self.kill(ray_trial, actor, silent)

    def kill(self, ray_trial: Trial, actor: Any, silent: float) -> None:
        """Record a trial as hung and kill its process; the trial is not restarted.

        Args:
            silent: seconds since its last report.
        """
        number = ray_trial.config["number"]
        message = f"no report for {duration(silent)}, more than resources.report_timeout: treated as hung"
        logger.warning(f"trial {number}: {message}; its process is ended")
        self.journal.record_hung(number, message)
        self.last_report.pop(ray_trial.trial_id)
        ray_compat.forbid_restarts(ray_trial)
        ray.kill(actor)
