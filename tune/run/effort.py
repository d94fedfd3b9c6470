"""What a sweep has cost, what early stopping has saved, and what was spent on trials that led nowhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from optuna.trial import TrialState

from tune.run.events import Event, EventKind, has_ended, is_damaged, read_events
from tune.run.live_state import read_live_state
from tune.run.results import Run


@dataclass(frozen=True)
class Effort:
    """What the trials of a run, but for imported ones, have cost so far.

    elapsed: seconds in which a driver was running, over all attempts; None if it is not known, see elapsed_seconds.
    trial_seconds: training time summed over trials and attempts. gpu_seconds: the same times the GPUs, or the share of
    one, that each trial had; 0 on a CPU. gpus_per_trial: that of new trials; 0 on a CPU. stopped_seconds: of
    trial_seconds, those of trials that early stopping ended. failed_seconds: those of trials that failed, diverged or
    ran out of memory. epochs: trained. full_epochs: what those trials that have ended would have trained without early
    stopping; out of patience, failed and diverged ones count as they were. saved_epochs: full_epochs less what they
    trained.
    """

    elapsed: float | None
    trial_seconds: float
    gpu_seconds: float
    gpus_per_trial: float
    stopped_seconds: float
    failed_seconds: float
    epochs: int
    full_epochs: int
    saved_epochs: int

    @property
    def gpu_hours(self) -> float:
        """GPU hours of the trials; 0 on a CPU. A trial that shares a GPU counts with its share."""
        return self.gpu_seconds / 3600

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
    live = read_live_state(run.dir.live)
    saved = sum(epochs - trial.epoch for trial in stopped)
    return Effort(
        elapsed=elapsed_seconds(run, read_events(run.dir.events), live.time if live else 0.0),
        trial_seconds=sum(trial.seconds for trial in own),
        gpu_seconds=sum(trial.gpu_seconds for trial in own),
        gpus_per_trial=run.config.resources.all_gpus,
        stopped_seconds=sum(trial.seconds for trial in stopped),
        failed_seconds=sum(trial.seconds for trial in failed),
        epochs=sum(trial.epoch for trial in own),
        full_epochs=saved + sum(trial.epoch for trial in ended),
        saved_epochs=saved,
    )


def elapsed_seconds(run: Run, events: Sequence[Event], seen: float = 0.0) -> float | None:
    """Return how long the attempts of a run lasted, each from its start to its last event.

    Args:
        run: its trials tell whether the events are all there.
        events: in their order.
        seen: when the last attempt was known to be running, if that was after its last event.

    Returns:
        None if a trial has trained whose start is no event: an older version, which noted none, began the run, or the
        file has lost lines; or if the file is damaged.
    """
    if not events or not starts_noted(run, events) or is_damaged(run.dir.events):
        return None
    total, began, last = 0.0, events[0].time, events[0].time
    for event in events:
        if event.kind == EventKind.SWEEP_STARTED:
            total, began = total + last - began, event.time
        last = event.time
    return total + (last if has_ended(events) else max(last, seen)) - began


def starts_noted(run: Run, events: Sequence[Event]) -> bool:
    """Return whether each trial that has trained has an event of its start."""
    started = {event.trial for event in events if event.kind == EventKind.TRIAL_STARTED}
    return all(trial.number in started for trial in run.own_trials if trial.epoch)


def events_lost(run: Run, events: Sequence[Event]) -> bool:
    """Return whether events.jsonl is damaged, or lacks starts of trials, as if half of it were cut off.

    A run that an older version has begun lacks them too; its events begin with a resume.
    """
    begun_by_older = not events or events[0].text.startswith("resumed")
    return is_damaged(run.dir.events) or (not begun_by_older and not starts_noted(run, events))
