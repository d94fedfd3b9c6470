"""The head of what a sweep shows: how far it is, what it has cost, how long it will take, what is best so far."""

from __future__ import annotations

from collections.abc import Sequence

from optuna.trial import TrialState

from trainable.core.console import duration
from tune.analysis.time_left import estimate_time_left
from tune.run.effort import elapsed_seconds, events_lost
from tune.run.events import Event, EventKind
from tune.run.live_state import LiveState
from tune.run.results import Run
from tune.terminal.text_lines import flow

UNITS = (("days", 86400), ("h", 3600), ("min", 60), ("s", 1))
ORDER = ("running", "waiting", "interrupted", "paused", "complete", "out of patience", "stopped early")


def header_lines(run: Run, live: LiveState | None, events: Sequence[Event], width: int, now: float) -> list[str]:
    """Return the head of a sweep's screen as lines of at most `width` columns.

    Args:
        live: None if it is not known what the trials are doing.
        events: of the run.
        now: seconds since 1970 (UTC).
    """
    left = "no process drives it now" if run.unfinished and not run.driven else time_left_text(run, live, events, now)
    return [
        *flow([f"note: {note}" if (note := run.config.record.note) else ""], width),
        *count_lines(run, width),
        *flow([elapsed_text(run, live, events, now), gpu_hours_text(run), left], width),
        *flow([best_text(run), running_best_text(run)], width),
    ]


def count_lines(run: Run, width: int) -> list[str]:
    """Return how many trials there are, and how many are in each state, after the sweep's name."""
    head, counts = f"{run.folder.name}: {progress_text(run)}", ", ".join(state_counts(run))
    return flow([f"{head}:", counts] if counts else [head], width, between=" ")


def progress_text(run: Run) -> str:
    """Return how many of the trials have started, as long as some have not ended, and how many were imported."""
    own = len(run.own_trials)
    imported = f", {len(run.trials) - own} more of earlier runs" if own < len(run.trials) else ""
    return f"{own} of {own + run.trials_left} trials{' started' * run.unfinished}{imported}"


def state_counts(run: Run) -> list[str]:
    """Return how many own trials are in each state: "3 running", "12 stopped early"."""
    states = [trial.status for trial in run.own_trials]
    known = sorted(set(states), key=lambda state: (ORDER.index(state) if state in ORDER else len(ORDER), state))
    return [f"{states.count(state)} {state}" for state in known]


def elapsed_text(run: Run, live: LiveState | None, events: Sequence[Event], now: float) -> str:
    """Return how long drivers were running, over all attempts, and the share of a time budget that this one has used.

    "" for a run without events, such as one of an older version. Says so if the file of events is damaged.
    """
    seconds = elapsed_seconds(run, events, now if run.driven else 0.0)
    if seconds is None:
        return "events.jsonl is damaged: elapsed time not known" if events_lost(run, events) else ""
    if not run.driven:
        return f"elapsed {duration(seconds)}"
    text, budget = f"elapsed {duration(seconds)}", run.config.budget.time_budget
    if budget is None:
        return text
    attempts = sum(event.kind == EventKind.SWEEP_STARTED for event in events)
    this = f", this attempt {duration(attempt_seconds(live, events, now))}" if attempts > 1 else ""
    return f"{text}{this} of {hours(budget)}"


def hours(seconds: float) -> str:
    """Return a budget of time as text: "48 h", or as a duration if it is no number of half hours."""
    return duration(seconds) if seconds % 1800 else f"{seconds / 3600:g} h"


def attempt_seconds(live: LiveState | None, events: Sequence[Event], now: float) -> float:
    """Return how long this launch or resume has been running."""
    starts = [event.time for event in events if event.kind == EventKind.SWEEP_STARTED]
    return max(0.0, now - (live.started if live else starts[-1] if starts else now))


def gpu_hours_text(run: Run) -> str:
    """Return the GPU hours so far, with the budget if there is one; on a CPU the time of the trials."""
    budget = run.config.budget.gpu_hours
    if not run.config.resources.gpu_share:
        return f"{duration(sum(trial.seconds for trial in run.own_trials))} of training on the CPU"
    hours = sum(trial.gpu_hours for trial in run.own_trials)
    return f"{hours:.2f}{f' of {budget:g}' if budget else ''} GPU hours"


def time_left_text(run: Run, live: LiveState | None, events: Sequence[Event], now: float) -> str:
    """Return how long the sweep will go on, as a range; "" if it has ended or nothing drives it."""
    if not run.unfinished or not run.driven:
        return ""
    running = sum(trial.state == TrialState.RUNNING and not trial.paused for trial in run.trials)
    left = estimate_time_left(run, (live.slots if live else None) or max(running, 1))
    if left is None:
        return "time left: known after the first epoch"
    low, high = left
    if (budget := run.config.budget.time_budget) is not None:
        rest = max(0.0, budget - attempt_seconds(live, events, now))
        low, high = min(low, rest), min(high, rest)
    return f"{rough_range(low, high)} left"


def rough_range(low: float, high: float) -> str:
    """Return a range of seconds as text, in one unit: "0.8 to 4.6 h", or "at most 20 min" if the least is next to 0."""
    unit, size = next(((unit, size) for unit, size in UNITS if high >= 2 * size), UNITS[-1])
    texts = [f"{value / size:.1f}" if size >= 3600 else f"{value / size:.0f}" for value in (low, high)]
    if float(texts[0]) == 0:
        return f"at most {texts[1]} {unit}"
    return f"{texts[0]} to {texts[1]} {unit}" if texts[0] != texts[1] else f"about {texts[1]} {unit}"


def best_text(run: Run) -> str:
    """Return the best score so far, of which trial, and whether that has ended."""
    if not run.ranking:
        return "no score yet"
    best = run.ranking[0]
    return f"best {best.score:.4f} (trial {best.number}, {best.status})"


def running_best_text(run: Run) -> str:
    """Return which running trial scores above the best one, which counts when it has ended; "" without one."""
    if not run.ranking:
        return ""
    best = run.ranking[0].score or 0.0
    above = [t for t in run.ranking if t.state == TrialState.RUNNING and (t.score or 0.0) > best]
    if not above:
        return ""
    top = max(above, key=lambda trial: trial.score or 0.0)
    return f"trial {top.number} is at {top.score:.4f} and counts when it has ended"
