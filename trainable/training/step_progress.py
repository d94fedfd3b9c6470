"""How far a training is within its epoch, told to a callback every few seconds."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

PERIOD_SECONDS = 2.0  # at least between two calls


@dataclass(frozen=True)
class StepProgress:
    """How far a training is within an epoch.

    phase: what it does. epoch: the epoch in progress, from 1. done, total: steps of that epoch, or while validating
    cases. patches_per_second: since the epoch began; None before its first step and while validating.
    """

    phase: Literal["training", "validating"]
    epoch: int
    done: int
    total: int
    patches_per_second: float | None = None


OnProgress = Callable[[StepProgress], None]


class ProgressReporter:
    """Calls a function with the progress of a training, in the thread that trains.

    It reads nothing from the GPU, which may be some steps behind. A step at which no call is due costs 1 µs.

    on_progress: called at most every PERIOD_SECONDS; None for nothing. What it raises ends the training.
    """

    def __init__(self, on_progress: OnProgress | None = None) -> None:
        self.on_progress = on_progress
        self.next_call = -math.inf

    def step(self, epoch: int, done: int, total: int, patches: int, started: float) -> None:
        """Tell of a step of training.

        Args:
            epoch, done, total: as in StepProgress.
            patches: that the epoch has trained on so far.
            started: when the epoch began, by time.perf_counter().
        """
        if self.due():
            rate = patches / (time.perf_counter() - started) if patches else None
            self.tell(StepProgress("training", epoch, done, total, rate))

    def case(self, epoch: int, done: int, total: int) -> None:
        """Tell of a validated case; the arguments are as in StepProgress."""
        if self.due():
            self.tell(StepProgress("validating", epoch, done, total))

    def due(self) -> bool:
        """Return whether a call is due."""
        return self.on_progress is not None and time.perf_counter() >= self.next_call

    def tell(self, progress: StepProgress) -> None:
        """Call on_progress."""
        assert self.on_progress is not None
        self.next_call = time.perf_counter() + PERIOD_SECONDS
        self.on_progress(progress)
