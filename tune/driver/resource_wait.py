"""Says so when no trial can start because others hold the cluster's resources."""

from __future__ import annotations

import re
import shlex
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
from ray import tune as ray_tune
from ray.tune.experiment import Trial

from tune.driver import ray_compat
from tune.driver.event_log import EventLog
from tune.run.events import EventKind
from tune.search.journal import Journal

WAIT_SECONDS = 5.0  # without a running trial, before it is looked for the reason
REPEAT_SECONDS = 900.0  # from one message to the next that says the same
CHANGE_SECONDS = 30.0  # from one message to the next that says something else


class ResourceWait(ray_tune.Callback):
    """Notes what the trials wait for as an event, and in the journal that they wait, which `voxtune status` shows.

    need: resources of one trial on each of its nodes, by Ray's names. nodes: their number.
    """

    def __init__(self, journal: Journal, need: dict[str, float], nodes: int, events: EventLog) -> None:
        self.journal, self.need, self.nodes = journal, {kind: count for kind, count in need.items() if count}, nodes
        self.events = events
        self.waits_since = self.next_look = time.monotonic()
        self.last_message, self.line = -REPEAT_SECONDS, ""

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
            line = waiting_line(self.need, ray.cluster_resources(), ray.available_resources(), self.nodes)
            if now >= self.last_message + (REPEAT_SECONDS if line == self.line else CHANGE_SECONDS):
                self.last_message, self.line = now, line
                self.events.add(EventKind.TRIAL_WAITS, line)


def waiting_line(
    need: Mapping[str, float], total: Mapping[str, float], available: Mapping[str, float], nodes: int = 1
) -> str:
    """Return what trials wait for, how much of it is taken and by whom, all by Ray's names of the resources.

    need: of a trial on each of its nodes. nodes: their number.
    """
    wanted = " and ".join(f"{count:g} {kind}" for kind, count in need.items())
    wanted += f" on each of {nodes} nodes" * (nodes > 1)
    taken = ", ".join(f"{total.get(k, 0) - available.get(k, 0):g} of {total.get(k, 0):g} {k}" for k in need)
    return f"waits for {wanted} per trial: {taken} are taken by {holders(need) or 'others'}"


def holders(need: Mapping[str, float]) -> str:
    """Return the other programs on the cluster that have reserved such resources, with how much; else all others."""
    jobs, reserved = ray_compat.live_jobs(), ray_compat.reserved_by_job()
    jobs.pop(ray.get_runtime_context().get_job_id(), None)
    names = {
        job: f"{program(found['Entrypoint'])} (process {found['DriverPid']} on {found['DriverIPAddress']})"
        for job, found in jobs.items()
    }
    held = {job: {kind: reserved.get(job, Counter[str]())[kind] for kind in need} for job in jobs}
    known = [
        f"{names[job]}: " + ", ".join(f"{count:g} {kind}" for kind, count in counts.items() if count)
        for job, counts in held.items()
        if any(counts.values())
    ]
    return "; ".join(known or names.values())


def program(command_line: str) -> str:
    """Return the program of a command line, of voxtune also the verb: the rest may have a secret."""
    try:
        words = [word for word in shlex.split(command_line) if word != "-m"]
    except ValueError:  # a quotation mark is missing
        words = command_line.split()[:1]
    names = [Path(word).name for word in words]
    if re.match(r"python[\d.]*$", "".join(names[:1])) and not "".join(words[1:2]).startswith("-"):
        names = names[1:] or names
    verb = names[1:2] if names[:1] in (["voxtune"], ["tune"]) else []
    return " ".join([*names[:1], *verb]) or "a program"
