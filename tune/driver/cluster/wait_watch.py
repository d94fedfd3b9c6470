"""Says what waits for resources of the connected cluster that others hold: trials, trainings, one on several nodes."""

from __future__ import annotations

import re
import shlex
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import ray

from trainable.core.console import duration
from trainable.core.counted import counted
from tune.driver.cluster import ray_compat
from tune.driver.cluster.connection import Slots, nodes_in_words

LOOK_SECONDS = 1.0  # from one question to Ray to the next
# Ray takes up to this long to reserve what nobody holds, and to begin the next wait after one has ended. So shorter
# waits are not told, and shorter gaps between two waits do not end the first.
PATIENCE_SECONDS = 2.0
REPEAT_SECONDS = 900.0  # from one message to the next that says the same
CHANGE_SECONDS = 10.0  # from one message to the next that says something else


class WaitWatch:
    """Says what waits and who holds the resources, once it has waited PATIENCE_SECONDS, when that changes, and its end.

    Args:
        slots: for what waits.
        what: waits, as "trial".
        say: called with each message, and whether it still waits then.
    """

    def __init__(self, slots: Slots, what: str, say: Callable[[str, bool], None]) -> None:
        self.slots, self.what, self.say = slots, what, say
        self.since: float | None = None  # when something began to wait; None while nothing does
        self.next_look = self.last_wait = 0.0
        self.count = 0
        self.last_message, self.line = 0.0, ""  # "" if it was not said that something waits

    def look(self, *, ask: bool = True) -> int:
        """Return how many wait, 0 within PATIENCE_SECONDS, and say it if that is due; looks once a second.

        ask: Ray how many wait; False if it is known that nothing does.
        """
        now = time.monotonic()
        if now < self.next_look:
            return self.count
        self.next_look = now + LOOK_SECONDS
        waiting = ray_compat.waiting_reservations() if ask else 0
        if waiting:
            self.last_wait = now
            self.since = now if self.since is None else self.since
        elif now >= self.last_wait + PATIENCE_SECONDS:
            self.end()
        self.count = waiting if self.since is not None and now >= self.since + PATIENCE_SECONDS else 0
        if self.count:
            self.say_if_due(now)
        return self.count

    def say_if_due(self, now: float) -> None:
        """Say what waits, if it was not said, or has changed."""
        if self.line and now < self.last_message + CHANGE_SECONDS:
            return
        line = f"{subject(self.count, self.what, self.slots)}: {self.reason()}"
        if line != self.line or now >= self.last_message + REPEAT_SECONDS:
            self.last_message, self.line = now, line
            self.say(line, True)

    def reason(self) -> str:
        """Return who holds what is waited for, or that no node has it, and whether nodes are added."""
        if self.slots.fitting():
            reason = taken_line(self.slots.need, ray.cluster_resources(), ray.available_resources())
        else:
            reason = nodes_in_words()
        return reason + "; the autoscaler was asked for nodes: `ray status` shows what it does" * self.slots.autoscales

    def end(self) -> None:
        """Note that nothing waits any more; say it if it was said that something did."""
        if self.line and self.since is not None:
            self.say(f"no {self.what} waits any more; it took {duration(time.monotonic() - self.since)}", False)
        self.since, self.count, self.line = None, 0, ""


def subject(count: int, what: str, slots: Slots) -> str:
    """Return how many wait, and what for: "7 trials wait for 1 CPU and 1 GPU each"."""
    wanted = slots.need_in_words()
    wanted += " each" * (count > 1) + f" on each of {slots.nodes} nodes" * (slots.nodes > 1)
    return f"{counted(count, what)} {'wait' if count > 1 else 'waits'} for {wanted}"


def taken_line(need: Mapping[str, float], total: Mapping[str, float], available: Mapping[str, float]) -> str:
    """Return how much is taken of each resource that is needed, and by whom; all by Ray's names."""
    taken = {kind: total.get(kind, 0) - available.get(kind, 0) for kind in need}
    texts = [f"{amount:g} of {total.get(kind, 0):g} {kind}" for kind, amount in taken.items()]
    return f"{', '.join(texts)} are taken by {holders(taken) or 'others'}"


def holders(taken: Mapping[str, float]) -> str:
    """Return the programs that have reserved such resources, with how much, this one last; "" if Ray does not tell.

    What is taken without a reservation may be any other program's: all are named then, those without a number too.

    taken: by all, by Ray's names.
    """
    jobs, reserved = ray_compat.live_jobs(), ray_compat.reserved_by_job()
    jobs.pop(own := ray.get_runtime_context().get_job_id(), None)
    names = {
        job: f"{program(found['Entrypoint'])} (process {found['DriverPid']} on {found['DriverIPAddress']})"
        for job, found in jobs.items()
    }
    names[own] = f"{program(shlex.join(sys.orig_argv))} (this process)"
    held = {job: {kind: reserved.get(job, Counter[str]())[kind] for kind in taken} for job in names}
    unknown = any(amount > sum(counts[kind] for counts in held.values()) + 1e-6 for kind, amount in taken.items())
    texts = []
    for job, name in names.items():
        if known := ", ".join(f"{count:g} {kind}" for kind, count in held[job].items() if count):
            texts.append(f"{name}: {known}")
        elif unknown and job != own:
            texts.append(name)
    return "; ".join(texts)


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
