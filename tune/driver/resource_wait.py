"""Says so when no trial can start because others hold the cluster's resources."""

from __future__ import annotations

import time
from typing import Any

import ray
from ray import tune as ray_tune
from ray.tune.experiment import Trial

from tune.driver import ray_compat
from tune.driver.event_log import EventLog
from tune.run.events import EventKind
from tune.search.journal import Journal

WAIT_SECONDS = 5.0  # without a running trial, before it is looked for the reason
REPEAT_SECONDS = 900.0  # from one message to the next


class ResourceWait(ray_tune.Callback):
    """Notes what the trials wait for as an event, and in the journal that they wait, which `voxtune status` shows.

    need: resources of one trial, by Ray's names.
    """

    def __init__(self, journal: Journal, need: dict[str, float], events: EventLog) -> None:
        self.journal, self.need = journal, {kind: count for kind, count in need.items() if count}
        self.events = events
        self.waits_since = self.next_look = self.next_message = time.monotonic()

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing for Ray's snapshot of its tuner, which voxtune never reads."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Note that a trial waits no more. Called by Ray when a trial starts or is restored."""
        self.journal.record_waiting(trial.config["number"], waits=False)

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Look for the reason if no trial runs, at most once a second. Called by Ray after each event."""
        now = time.monotonic()
        if now < self.next_look:
            return
        self.next_look = now + 1
        waiting = [trial for trial in trials if trial.status == Trial.PENDING]
        if not waiting or any(trial.status == Trial.RUNNING for trial in trials):
            self.waits_since = now
        elif now > self.waits_since + WAIT_SECONDS and not ray_compat.holds_resources():
            for trial in waiting:
                self.journal.record_waiting(trial.config["number"], waits=True)
            if now >= self.next_message:
                self.next_message = now + REPEAT_SECONDS
                line = waiting_line(self.need, ray.cluster_resources(), ray.available_resources())
                self.events.add(EventKind.TRIAL_WAITS, line)


def waiting_line(need: dict[str, float], total: dict[str, float], available: dict[str, float]) -> str:
    """Return what trials wait for and how much of it others hold, all by Ray's names of the resources."""
    wanted = " and ".join(f"{count:g} {kind}" for kind, count in need.items())
    taken = ", ".join(f"{total.get(k, 0) - available.get(k, 0):g} of {total.get(k, 0):g} {k}" for k in need)
    return f"waits for {wanted} per trial: {taken} are taken by others"
