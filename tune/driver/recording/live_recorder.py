"""Keeps RUN/live.json up to date: what the running trials are doing now, also between two of their reports."""

from __future__ import annotations

import os
import platform
import time
from contextlib import suppress
from dataclasses import replace
from typing import Any, Self

from ray import tune as ray_tune
from ray.tune.experiment import Trial

from tune.driver.cluster.connection import Slots
from tune.driver.processes.progress_board import ProgressBoard
from tune.run.live_state import Activity, LiveState, write_live_state
from tune.run.run_dir import RunDir

WRITE_SECONDS = 2.0  # at least between two writes
READ_SECONDS = 0.5  # at least between two readings of the board


class LiveRecorder(ray_tune.Callback):
    """Knows what each running trial is doing, and writes it.

    run_dir: the folder of the run. slots: of the cluster. board: what trials send their progress to.
    """

    def __init__(self, run_dir: RunDir, slots: Slots, board: ProgressBoard) -> None:
        self.path, self.slots, self.board = run_dir.live, slots, board
        self.started = time.time()
        self.running: dict[int, Activity] = {}
        self.next_read = self.next_write = 0.0  # monotonic seconds

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing for Ray's snapshot of its tuner, which voxtune never reads."""
        return {}

    def __enter__(self) -> Self:
        self.write()
        return self

    def __exit__(self, *_: object) -> None:
        """Write that nothing runs any more."""
        self.running.clear()
        self.write()

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Note that the process of a trial starts. Called by Ray, also when a trial is restored."""
        self.receive()  # so that what an earlier process has sent is not taken for this one's
        self.running.pop(trial.config["number"], None)
        self.starts(trial.config["number"])

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """Note where a trial runs, which the first report of its process tells. Called by Ray."""
        number = trial.config["number"]
        if "host" in result and number in self.running:
            self.running[number] = replace(self.running[number], host=result["host"], gpus=tuple(result["gpus"]))

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Drop a trial that has failed and is to be started again. Called by Ray."""
        self.running.pop(trial.config["number"], None)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Drop a trial that has ended. Called by Ray."""
        self.running.pop(trial.config["number"], None)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Drop a trial that has failed for good. Called by Ray."""
        self.running.pop(trial.config["number"], None)

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Read the board and write the file, if that is due. Called by Ray after each event, and ten times a second."""
        now = time.monotonic()
        if now >= self.next_read:
            self.next_read = now + READ_SECONDS
            self.receive()
            for ray_trial in trials:
                if ray_trial.status == Trial.PENDING:  # handed out; its process is being started, or waits
                    self.starts(ray_trial.config["number"])
        if now >= self.next_write:
            self.next_write = now + WRITE_SECONDS
            self.write()

    def starts(self, number: int) -> None:
        """Note that the process of a trial is being started, unless that is known."""
        self.running.setdefault(number, Activity(number, "starting", updated=time.time()))

    def receive(self) -> None:
        """Take over what the running trials have sent."""
        for activity in self.board.read():
            known = self.running.get(activity.number)
            if known is not None:
                self.running[activity.number] = replace(activity, host=known.host, gpus=known.gpus)

    def state(self) -> LiveState:
        """Return what is known now."""
        activities = tuple(self.running[number] for number in sorted(self.running))
        return LiveState(time.time(), self.started, platform.node(), os.getpid(), self.slots.count(), activities)

    def write(self) -> None:
        """Write the file. If that fails, the driver meets the same error where it matters."""
        with suppress(OSError):
            write_live_state(self.path, self.state())
