"""What running trials are doing between their reports: sent by them every few seconds, kept for the driver.

A trial's calls wait for nothing, and are dropped while MAX_PENDING_CALLS of them are on their way. Ray's own way, a
report, would have each trial wait for the driver, and the driver handle it as an event of its sweep.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from trainable.training.step_progress import StepProgress
from tune.run.live_state import Activity

MAX_PENDING_CALLS = 10  # per process


class ProgressBoard:
    """The last activity of each running trial, in a process of its own: a Ray actor, see start_board."""

    def __init__(self) -> None:
        self.latest: dict[int, Activity] = {}

    def put(self, activity: Activity) -> None:
        """Note what a trial is doing now, by this machine's clock."""
        self.latest[activity.number] = replace(activity, updated=time.time())

    def read(self, running: Sequence[int]) -> list[Activity]:
        """Return the activities of these trials, as far as they are known; those of others are dropped."""
        self.latest = {number: self.latest[number] for number in running if number in self.latest}
        return list(self.latest.values())


def start_board() -> ActorHandle:
    """Start a ProgressBoard on this machine of the connected cluster; it ends when the handle is dropped."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    options = {"num_cpus": 0, "max_restarts": -1, "max_pending_calls": MAX_PENDING_CALLS}
    board: Any = ray.remote(ProgressBoard)  # Ray's types do not know options
    handle: ActorHandle = board.options(scheduling_strategy=here, **options).remote()
    return handle


class ProgressSender:
    """Sends the progress of one trial from its process to a board.

    board: None to send nothing. number: of the trial.
    """

    def __init__(self, board: ActorHandle | None, number: int) -> None:
        self.board, self.number = board, number

    def send(self, progress: StepProgress) -> None:
        """Send it, and wait for nothing. What goes wrong is of no importance to the training."""
        if self.board is None:
            return
        activity = Activity(
            self.number, progress.phase, progress.epoch, progress.done, progress.total, progress.patches_per_second
        )
        with suppress(ray.exceptions.RayError):  # too many are on their way, or the board's machine is gone
            self.board.put.remote(activity)


class BoardReader:
    """Reads a board without waiting for it: each call returns what the last one has asked for."""

    def __init__(self, board: ActorHandle) -> None:
        self.board = board
        self.answer: ray.ObjectRef | None = None
        self.known: list[Activity] = []

    def read(self, running: Sequence[int]) -> list[Activity]:
        """Return what these trials were doing when this was asked last, and ask again."""
        if self.answer is not None and not ray.wait([self.answer], timeout=0)[0]:
            return self.known
        answer, self.answer = self.answer, None
        with suppress(ray.exceptions.RayError):  # the board is being restarted
            self.answer = self.board.read.remote(list(running))
            if answer is not None:
                self.known = ray.get(answer)
        return self.known
