"""What a sweep has cost, what early stopping has saved, and what was spent on trials that led nowhere."""

from __future__ import annotations

from dataclasses import dataclass

from optuna.trial import TrialState

from tune.run.events import Event, EventKind, read_events
from tune.run.results import Run


@dataclass(frozen=True)
class Effort:
    """What the trials of a run, but for imported ones, have cost so far.

    elapsed: seconds in which a driver was running, over all attempts; None if the run has no events, as an older one.
    trial_seconds: training time summed over trials and attempts. gpus_per_trial: 0 on a CPU. stopped_seconds: of
    trial_seconds, those of trials that early stopping ended. failed_seconds: those of trials that failed, diverged or
    ran out of memory. epochs: trained. full_epochs: what those trials that have ended would have trained without early
    stopping; out of patience, failed and diverged ones count as they were. saved_epochs: full_epochs less what they
    trained.
    """

    elapsed: float | None
    trial_seconds: float
    gpus_per_trial: float
    stopped_seconds: float
    failed_seconds: float
    epochs: int
    full_epochs: int
    saved_epochs: int

    @property
    def gpu_hours(self) -> float:
        """GPU hours of the trials; 0 on a CPU. A trial that shares a GPU counts with its share."""
        return self.trial_seconds * self.gpus_per_trial / 3600

    @property
    def stopped_share(self) -> float:
        """Share of the training time that went into trials that early stopping ended, from 0 to 1."""
        return self.stopped_seconds / self.trial_seconds if self.trial_seconds else 0.0

    @property
    def saved_share(self) -> float:
        """Share of full_epochs that early stopping saved, from 0 to 1."""
        return self.saved_epochs / self.full_epochs if self.full_epochs else 0.0


def measure_effort(run: Run) -> Effort:
    """Return what a run has cost so far, by its journal, and by its events for the elapsed time."""
    own, epochs = run.own_trials, run.config.fixed("epochs")
    ended = [trial for trial in own if trial.state != TrialState.RUNNING]
    stopped = [trial for trial in ended if trial.status == "stopped early"]
    failed = [trial for trial in ended if trial.status in ("failed", "not finite", "out of memory")]
    gpu = run.config.resources.gpu
    saved = sum(epochs - trial.epoch for trial in stopped)
    return Effort(
        elapsed=elapsed_seconds(read_events(run.dir.events)),
        trial_seconds=sum(trial.seconds for trial in own),
        gpus_per_trial=0.0 if gpu == "auto" else float(gpu or 0),
        stopped_seconds=sum(trial.seconds for trial in stopped),
        failed_seconds=sum(trial.seconds for trial in failed),
        epochs=sum(trial.epoch for trial in own),
        full_epochs=saved + sum(trial.epoch for trial in ended),
        saved_epochs=saved,
    )


def elapsed_seconds(events: list[Event]) -> float | None:
    """Return how long the attempts lasted, each from its start to its last event; None without an event."""
    if not events:
        return None
    total, began, last = 0.0, None, 0.0
    for event in events:
        if event.kind == EventKind.SWEEP_STARTED:
            total += last - began if began is not None else 0.0
            began = event.time
        last = event.time
    return total + (last - began if began is not None else 0.0)
