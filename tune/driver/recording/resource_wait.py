"""Notes which trials of a sweep wait: for resources that others hold, or until a slot is free."""

from __future__ import annotations

import time
from typing import Any

from ray import tune as ray_tune
from ray.tune.experiment import Trial

from tune.driver.cluster.node_request import NodeRequest
from tune.driver.cluster.wait_watch import LOOK_SECONDS, WaitWatch
from tune.driver.recording.event_log import EventLog
from tune.driver.scheduling.searcher import OptunaSearcher
from tune.run.events import EventKind
from tune.search.journal import Journal


class ResourceWait(ray_tune.Callback):
    """Notes in the journal which trials wait, and as events what for, both of which `voxtune status` shows.

    request: with which an autoscaler is asked for nodes for all trials that are left.
    """

    def __init__(self, journal: Journal, searcher: OptunaSearcher, events: EventLog, request: NodeRequest) -> None:
        self.journal, self.searcher, self.events, self.request = journal, searcher, events, request
        self.watch = WaitWatch(searcher.slots, "trial", self.say)
        self.waiting: set[int] = set()  # numbers of trials, as noted
        self.next_look = 0.0

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing for Ray's snapshot of its tuner, which voxtune never reads."""
        return {}

    def say(self, text: str, waits: bool) -> None:
        """Note as an event what waits, or that nothing does any more."""
        self.events.add(EventKind.TRIAL_WAITS if waits else EventKind.WAIT_ENDED, text)

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Note that a trial waits no more. Called by Ray when a trial starts or is restored."""
        self.note(trial.config["number"], waits=False)

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Note which trials wait, and ask for nodes, once a second. Called by Ray after each event.

        Ray has not started a trial that is PENDING: it reserves resources for it, or its process is being started. What
        it has reserved is for the trials of the lowest numbers, see RungScheduler.choose_trial_to_run.
        """
        if time.monotonic() < self.next_look:
            return
        self.next_look = time.monotonic() + LOOK_SECONDS
        self.request.ask_for(len(self.searcher.number_by_ray_id) + self.searcher.remaining)
        pending = sorted(trial.config["number"] for trial in trials if trial.status == Trial.PENDING)
        first = max(0, len(pending) - self.watch.look(ask=bool(pending)))  # that waits for resources
        waiting = {*pending[first:], *(number for number, _ in self.searcher.interrupted)}
        for number in waiting - self.waiting:
            self.note(number, waits=True)
        for number in self.waiting.intersection(pending[:first]):
            self.note(number, waits=False)

    def note(self, number: int, *, waits: bool) -> None:
        """Note whether a trial waits."""
        self.journal.record_waiting(number, waits=waits)
        (self.waiting.add if waits else self.waiting.discard)(number)
