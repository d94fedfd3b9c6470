"""The live screen of a sweep while it runs."""

from __future__ import annotations

import math
import time
from typing import Self

from optuna.trial import TrialState
from rich.live import Live
from rich.text import Text

from trainable.core.console import make_console
from trainable.core.logger import logger
from tune.run.events import Event, EventKind, read_events
from tune.run.live_state import LiveState
from tune.run.results import Run
from tune.spec.sweep_config import SweepConfig
from tune.terminal.sweep_header import best_text, time_left_text
from tune.terminal.sweep_screen import event_line, is_news, sweep_screen

LEFT_SECONDS = 5.0  # between two estimates of the time left: each takes a tenth of a second
ENDS = (EventKind.TRIAL_ENDED, EventKind.TRIAL_STOPPED)


class LiveScreen:
    """A part of the terminal that is redrawn while something runs; none off a terminal or on one that
    cannot redraw, where `live` is None.

    The logger's messages appear above it, because rich redirects sys.stdout meanwhile.
    """

    def __init__(self) -> None:
        console = make_console()
        self.started = self.refreshed = time.monotonic()
        redraws = console.is_terminal and not console.is_dumb_terminal
        self.live = Live(console=console, auto_refresh=False, transient=True) if redraws else None

    def __enter__(self) -> Self:
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.live.stop()

    def due(self) -> bool:
        """Return whether a second has passed since the last refresh."""
        return time.monotonic() - self.refreshed >= 1


class SweepScreen(LiveScreen):
    """Shows a sweep while it runs: on a terminal one screen that is redrawn, elsewhere a line per event.

    trials: of the whole sweep.
    """

    def __init__(self, config: SweepConfig, trials: int) -> None:
        super().__init__()
        self.config, self.trials = config, trials
        self.run: Run | None = None
        self.events: list[Event] = []
        self.left, self.next_estimate = "", -math.inf  # the time left in words; when to estimate it again, monotonic

    def __enter__(self) -> Self:
        super().__enter__()
        if self.live is not None:
            text = f"{self.trials} trials of up to {self.config.fixed('epochs')} epochs: the first ones start"
            self.live.update(Text(text, no_wrap=True), refresh=True)
        return self

    def refresh(self, run: Run, live: LiveState | None) -> None:
        """Draw the screen; off a terminal `run` is only what the next events are told against."""
        if self.run is None:  # what earlier attempts have written
            since = self.events[0].time if self.events else math.inf
            self.events = [*(event for event in read_events(run.dir.events) if event.time < since), *self.events]
        self.refreshed, self.run = time.monotonic(), run
        if self.live is not None:
            size, ascii_only = self.live.console.size, not self.live.console.encoding.startswith("utf")
            screen = sweep_screen(run, live, self.events, size.width, size.height - 1, ascii_only=ascii_only)
            self.live.update(screen, refresh=True)

    def event(self, event: Event) -> None:
        """Note an event, which the next refresh shows; off a terminal, print it as a line."""
        self.events.append(event)
        if self.live is None and is_news(event):
            logger.info("  |  ".join(filter(None, [event_line(event, seconds=True), self.progress(event)])))

    def progress(self, event: Event) -> str:
        """Return how far the sweep is, for the line of a trial's end; "" for other events."""
        if self.run is None or event.kind not in ENDS:
            return ""
        ended = {trial.number for trial in self.run.own_trials if trial.state != TrialState.RUNNING}
        ended |= {event.trial for event in self.events if event.trial is not None and event.kind in ENDS}
        if (now := time.monotonic()) >= self.next_estimate:
            self.left = time_left_text(self.run, None, self.events, time.time())
            self.next_estimate = now + LEFT_SECONDS
        counts = f"{len(ended)} of {self.trials} trials ended"
        return ", ".join(filter(None, [counts, best_text(self.run), self.left]))
