"""When and how a sweep ends before its last trial."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray import tune as ray_tune
from rich.console import Console

from tune.driver.cluster import ray_died
from tune.run.results import Run

SHUTDOWN_GRACE_SECONDS = 20  # seconds from a signal to an end that waits for nothing


class SweepStopper(ray_tune.Stopper):
    """Ends a sweep cleanly, its trials resumable: at a signal, a spent budget, a reached target, a full disk."""

    def __init__(self, run: Run) -> None:
        self.config, self.run = run.config, run
        self.signal = 0  # the signal
        self.finished = threading.Event()  # nothing more to wait for
        self.error = ""  # what ends the sweep with exit code 1
        self.started = time.monotonic()
        self.gpu_seconds = sum(trial.seconds for trial in run.own_trials) * self.config.resources.gpu_share
        self.best = max((trial.score or 0.0 for trial in run.own_trials if trial.finished), default=0.0)

    def __getstate__(self) -> dict[str, Any]:
        """Nothing for Ray's snapshot of its tuner, which voxtune never reads."""
        return {}

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Called by Ray with each report, and with the last again when a trial is done; no trial is ended here."""
        if result.get("done"):
            return False
        self.error = self.error or result.get("disk_full", "")
        self.gpu_seconds += result["time_this_iter_s"] * self.config.resources.gpu_share
        if result["end_reason"] in ("epochs", "patience"):
            self.best = max(self.best, result["best_score"])
        return False

    def failed(self, number: int) -> None:
        """Hear of a trial that failed for good."""
        if self.config.resources.fail_fast:
            self.error = f"fail_fast: trial {number} failed, see {self.run.trial_dir(number)}/error.txt"

    def stop_all(self) -> bool:
        """Asked by Ray after each step."""
        return bool(self.reason())

    def reason(self) -> str:
        """Why the sweep ends before its last trial; nothing while it goes on."""
        budget = self.config.budget
        if self.signal:
            return signal.Signals(self.signal).name
        if self.error:
            return self.error
        if budget.time_budget is not None and time.monotonic() - self.started > budget.time_budget:
            return "study.time_budget, which is over"
        if budget.gpu_hours is not None and self.gpu_seconds >= budget.gpu_hours * 3600:
            return f"study.gpu_hours: {self.gpu_seconds / 3600:.2f} of {budget.gpu_hours:g} are spent"
        if budget.target is not None and self.best >= budget.target:
            return f"study.target: a finished trial has {self.best:.4f}, and {budget.target:g} was asked for"
        return ""

    @contextmanager
    def handle_signals(self) -> Iterator[None]:
        """Take Ctrl-C and SIGTERM, and wait for a clean end, but not for long; a second Ctrl-C waits for nothing.

        The journal is whole at every moment, so an end that waits for nothing loses no more than a kill does: a trial
        may not answer, and where Ray is dead, as a signal to the whole process group kills it, there is nothing to wait
        for, and Ray's own code may end this process at any moment with exit code 1. A second SIGTERM is ignored:
        Ray's processes, as they end, may send one.
        """

        def note(number: int, _: Any) -> None:
            if not self.signal:
                self.signal = number
                threading.Thread(target=wait_and_leave, daemon=True).start()
            elif number == signal.SIGINT:
                leave()

        def wait_and_leave() -> None:
            end = time.monotonic() + SHUTDOWN_GRACE_SECONDS
            while not self.finished.wait(0.05):
                if ray_died() or time.monotonic() > end:
                    leave()

        def leave() -> None:
            print(self.message(), flush=True)
            sys.stderr.flush()
            os._exit(128 + self.signal)  # Ray's processes end with this one

        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            if not self.signal:  # else what comes after the trials is not waited for either
                self.finished.set()
                for each, handler in before.items():
                    signal.signal(each, handler)

    def message(self) -> str:
        """Why the sweep ended, and how to go on."""
        reason = self.reason()
        another = reason.startswith(("study.gpu_hours", "study.target"))
        more = ", with another --set study.KEY=VALUE" if another else ""
        return f"stopped by {reason}; go on with: voxtune resume {shlex.quote(str(self.run.folder))}{more}"

    def exit(self, console: Console, run: Run) -> None:
        """Say why the sweep ended before its last trial, how to go on; end the process after a signal or trouble."""
        if self.reason() and (self.signal or self.error or run.unfinished):
            console.print(self.message(), markup=False, soft_wrap=True)
        self.finished.set()
        if self.signal:
            raise SystemExit(128 + self.signal)
        if self.error:
            raise SystemExit(1)
