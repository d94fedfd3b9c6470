"""The events of a sweep, as its driver notes them: in RUN/events.jsonl, on the screen, and to whom it may concern."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from optuna.trial import TrialState

from trainable.core.logger import logger
from tune.run.events import Event, EventKind, append_event, has_ended, read_events
from tune.run.live_state import read_live_state
from tune.run.ranking import ranks_by_late
from tune.run.results import Run, TrialResult
from tune.run.run_dir import RunDir
from tune.search.asha import PAUSE, RungDecision
from tune.spec.trial_spec import Report

WHY_KEPT = {"default": "it is the default recipe", "audit": "early_stopping.audit has drawn it"}


class EventLog:
    """Notes what happens in one attempt of a sweep.

    A file that cannot be written is said once, and the sweep goes on: what it needs is in its journal.

    run_dir: the folder of the run. listeners: called with each event.
    """

    def __init__(self, run_dir: RunDir, *listeners: Callable[[Event], None]) -> None:
        self.dir, self.listeners = run_dir, listeners
        self.best: int | None = None
        self.warned = False

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing for Ray's snapshot of its tuner, which voxtune never reads."""
        return {}

    def add(self, kind: EventKind, text: str, trial: int | None = None, **details: Any) -> None:
        """Note an event that happens now.

        Args:
            kind, text, trial: as in Event.
            details: other fields of Event.
        """
        event = Event(time.time(), kind, text, trial, **details)
        self.write(event)
        for listener in self.listeners:
            listener(event)

    def write(self, event: Event) -> None:
        """Append an event to the file."""
        try:
            append_event(self.dir.events, event)
        except OSError as error:
            if not self.warned:
                logger.warning(f"{self.dir.events} is not up to date: {error}")
            self.warned = True

    def catch_up(self, run: Run) -> None:
        """Append the events that were missed; nobody is told, since they are past."""
        for event in missed_events(run):
            self.write(event)

    @contextmanager
    def attempt(self, run: Run, why_ended: Callable[[], str]) -> Iterator[None]:
        """Note in this context that an attempt starts and ends; before that what an earlier one that was killed missed.

        Args:
            run: as it is when the attempt starts.
            why_ended: returns why it has ended, in words; not called if an error ends the context, or RUN is gone.
        """
        self.catch_up(run)
        self.best = best_finished(run)
        earlier = sum(event.kind == EventKind.SWEEP_STARTED for event in read_events(self.dir.events))
        self.add(EventKind.SWEEP_STARTED, f"resumed: attempt {earlier + 1}" if earlier else "launched")
        try:
            yield
        except BaseException as error:
            self.add(EventKind.SWEEP_ENDED, f"stopped by {type(error).__name__}: {error}")
            raise
        if self.dir.config.exists():  # else the folder was moved or deleted, and there is no journal to tell why
            self.add(EventKind.SWEEP_ENDED, why_ended())

    def started(self, number: int, report: Report, epoch: int) -> None:
        """Note that a trial starts, or goes on.

        Args:
            number: of the trial.
            report: the first one of its process.
            epoch: the last one that it has reported, 0 for none.
        """
        host, gpus = report["host"], tuple(report["gpus"])
        how = f"goes on after epoch {epoch}" if epoch else "started"
        where = f"GPU {', '.join(map(str, gpus))} of {host}" if gpus else host
        where += "".join(f" and on {address}" for address in report.get("other_nodes", ()))
        self.add(EventKind.TRIAL_STARTED, f"{how} on {where}", number, host=host, gpus=gpus)

    def retried(self, number: int, error: str) -> None:
        """Note that a trial is started again after an error, given in one line."""
        self.add(EventKind.TRIAL_RETRIED, f"started again after {first_sentence(error)}", number)

    def went_back(self, number: int, report: Report, epoch: int) -> None:
        """Note that a trial goes on after an earlier epoch than its last one, `epoch`, or begins again, and why."""
        how = f"goes on after epoch {report['epoch']}" if report["epoch"] else "begins again"
        self.add(EventKind.TRIAL_WENT_BACK, f"{how}, not after epoch {epoch}: {report['went_back']}", number)

    def decided(self, number: int, epoch: int, decided: RungDecision) -> None:
        """Note a new decision of early stopping, if a trial is stopped or would have been, or pauses."""
        if decided.decision == PAUSE:
            self.add(EventKind.TRIAL_PAUSED, f"paused at epoch {epoch}: {decided.value:.4f}", number)
        if not decided.is_stop or decided.needed is None:  # let through, or kept at an earlier rung already
            return
        values = f"{decided.value:.4f}, {decided.needed:.4f} was needed"
        if decided.kept:
            text = f"goes on at epoch {epoch} despite {values}: {WHY_KEPT[decided.kept]}"
            self.add(EventKind.TRIAL_KEPT, text, number)
        else:
            self.add(EventKind.TRIAL_STOPPED, f"stopped at epoch {epoch}: {values}", number)

    def promoted(self, number: int, epoch: int, decided: RungDecision) -> None:
        """Note what early stopping has decided on a paused trial; the end of one that is stopped is noted later."""
        if decided.is_stop:
            self.decided(number, epoch, decided)
        else:
            text = f"is among the best at epoch {epoch} and goes on: {decided.value:.4f}"
            self.add(EventKind.TRIAL_PROMOTED, text, number)

    def ended(self, trial: TrialResult, run: Run) -> None:
        """Note that a trial has ended, and whether it is the new winner; nothing if it was only interrupted."""
        if trial.state == TrialState.RUNNING:
            return
        self.add(EventKind.TRIAL_ENDED, end_text(trial, run), trial.number, status=trial.status)
        if (best := best_finished(run)) is not None and best != self.best:
            self.add(EventKind.NEW_BEST, f"new winner, {score_text(trial, run)}", trial.number)
            self.best = best


def end_text(trial: TrialResult, run: Run) -> str:
    """Return how a trial has ended, in words."""
    why = f": {first_sentence(trial.error)}" if trial.error else ""
    return f"{trial.status} at epoch {trial.epoch}/{run.config.fixed('epochs')}, {score_text(trial, run)}{why}"


def score_text(trial: TrialResult, run: Run) -> str:
    """Return a trial's best score with its name, and the late one if that is what it is ranked by."""
    if trial.score is None:
        return "no score"
    best, late = f"{trial.score:.4f}", ""
    if trial.finished and trial.late_score is not None and ranks_by_late(run.ranking, run.config):
        late = f"{trial.late_score:.4f}"
    return f"{run.config.objective.score} {best}" + (f", late {late}" if late not in ("", best) else "")


def first_sentence(error: str) -> str:
    """Return the first sentence of an error, to which Ray adds how to look for its cause."""
    return error.partition(". ")[0]


def best_finished(run: Run) -> int | None:
    """Return the number of the trial that leads the ranking; None as long as none has trained to its end."""
    return next((trial.number for trial in run.ranking[:1] if trial.finished), None)


def missed_events(run: Run) -> list[Event]:
    """Return the events that the last attempt did not note: ends of trials, and its own end if its driver was killed.

    Their time is when the attempt was last seen alive.
    """
    events = read_events(run.dir.events)
    if not events:  # a new run, or one of an older version
        return []
    live = read_live_state(run.dir.live)
    was_killed = not has_ended(events)
    seen = max(events[-1].time, live.time if live and was_killed else 0.0)
    started = {event.trial for event in events if event.kind == EventKind.TRIAL_STARTED}
    noted = {event.trial for event in events if event.kind == EventKind.TRIAL_ENDED}
    missed = [
        Event(seen, EventKind.TRIAL_ENDED, end_text(trial, run), trial.number, status=trial.status)
        for trial in run.own_trials
        if trial.state != TrialState.RUNNING and trial.number in started - noted
    ]
    return missed + [Event(seen, EventKind.SWEEP_ENDED, "was killed")] * was_killed
