"""The screen of a sweep: what is known of it at this moment, in as many rows and columns as there are."""

from __future__ import annotations

import time
from collections.abc import Sequence

from optuna.trial import TrialState
from rich.console import Group
from rich.text import Text

from tune.run.events import Event, EventKind
from tune.run.live_state import LiveState
from tune.run.results import Run, TrialResult
from tune.terminal.sweep_header import header_lines
from tune.terminal.text_lines import as_lines
from tune.terminal.trial_lines import TrialLines

MAX_EVENTS = 6


def sweep_screen(
    run: Run,
    live: LiveState | None,
    events: Sequence[Event],
    width: int,
    height: int,
    *,
    now: float | None = None,
    ascii_only: bool = False,
) -> Group:
    """Return a sweep's head, its running trials and below them the best of the others, and what happened last.

    Args:
        live: what the running trials are doing; None if it is not known.
        events: of the run.
        width: columns, which no line exceeds.
        height: rows, which the screen does not exceed.
        now: seconds since 1970 (UTC); None for the clock's.
        ascii_only: draw without Unicode.
    """
    lines = TrialLines(run, live, width)
    head = header_lines(run, live, events, width, time.time() if now is None else now)
    room = max(2, height - len(head) - 2)  # without the empty line and the names of the columns
    running = [trial for trial in run.trials if trial.state == TrialState.RUNNING and not trial.paused]
    news = min(MAX_EVENTS, room // 3, max(0, room - len(running) - 2))
    last = [event_line(event) for event in events if is_news(event)][-news:] if news else []
    rows = room - len(last) - bool(last)
    best = [trial for trial in run.ranking if trial.state != TrialState.RUNNING or trial.paused]
    shown, more = running[:rows], ""
    if len(running) > rows:
        shown, more = running[: rows - 1], f"  ... and {len(running) - rows + 1} more that run or wait"
    body = lines.draw([*shown, *best[: rows - len(shown) - bool(more)]])
    drawn: list[Text | str] = [*head, "", lines.heading(), *body, *[more] * bool(more), *[""] * bool(last), *last]
    return Group(*as_lines(drawn, width, ascii_only=ascii_only))


def is_news(event: Event) -> bool:
    """Return whether an event is shown among the last ones: not a start, and not twice that a trial was stopped."""
    if event.kind == EventKind.TRIAL_ENDED:
        return event.status != "stopped early"
    return event.kind != EventKind.TRIAL_STARTED


def event_line(event: Event, *, seconds: bool = False) -> str:
    """Return an event as a line: "12:03 trial 13 stopped at epoch 3: 0.113, 0.118 was needed"."""
    clock = time.strftime("%H:%M:%S" if seconds else "%H:%M", time.localtime(event.time))
    subject = "" if event.trial is None else f"trial {event.trial}"
    separator = ": " if event.kind == EventKind.NEW_BEST else " "
    return f"{clock} {subject}{separator if subject else ''}{event.text}"


def ended_recently(run: Run, events: Sequence[Event]) -> list[TrialResult]:
    """Return the trials that have ended, the last one first; by their numbers if the run has no events."""
    ended = {trial.number: trial for trial in run.trials if trial.state != TrialState.RUNNING}
    order = [event.trial for event in events if event.kind == EventKind.TRIAL_ENDED and event.trial in ended]
    numbers = [*dict.fromkeys(reversed(order)), *sorted(ended.keys() - set(order), reverse=True)]
    return [ended[number] for number in numbers if number is not None]
