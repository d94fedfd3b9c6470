"""The live screen of a sweep while it runs."""

from __future__ import annotations

import time
from typing import Self

from optuna.trial import TrialState
from rich.console import Group
from rich.live import Live
from rich.text import Text

from trainable.core.console import duration, make_console
from trainable.core.logger import logger
from tune.run.events import Event, EventKind
from tune.run.live_state import LiveState
from tune.run.results import Run
from tune.terminal.tables import summary_line, trial_table

MAX_ROWS = 16


class LiveScreen:
    """A part of the terminal that is redrawn while something runs; none off a terminal, where `live` is None.

    The logger's messages appear above it, because rich redirects sys.stdout meanwhile.
    """

    def __init__(self) -> None:
        console = make_console()
        self.started = self.refreshed = time.monotonic()
        self.live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None

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


class LiveTable(LiveScreen):
    """Shows a sweep while it runs: on a terminal a table that is redrawn, elsewhere one line per ended trial.

    epochs: of a whole training. trials: of the whole sweep.
    """

    def __init__(self, epochs: int, trials: int) -> None:
        super().__init__()
        self.epochs, self.trials = epochs, trials
        self.ended_before: int | None = None
        self.run: Run | None = None

    def refresh(self, run: Run, live: LiveState) -> None:
        """Draw a table of `run`: its running trials, and below them the best ended ones if MAX_ROWS leaves room.

        Nothing is drawn off a terminal.
        """
        self.refreshed, self.run = time.monotonic(), run
        if self.ended_before is None:
            self.ended_before = sum(trial.state != TrialState.RUNNING for trial in run.own_trials)
        if self.live is None:
            return
        running = [trial for trial in run.trials if trial.state == TrialState.RUNNING]
        best = run.ranking[: max(0, MAX_ROWS - len(running))]
        rows = running + [trial for trial in best if trial.state != TrialState.RUNNING]
        self.live.update(Group(Text(self.headline(run)), trial_table(rows, self.epochs)), refresh=True)

    def headline(self, run: Run) -> str:
        """Return the counts, the best score so far, the time elapsed and the time left, "?" until a trial has ended."""
        elapsed = time.monotonic() - self.started
        ended = sum(trial.state != TrialState.RUNNING for trial in run.own_trials)
        new = ended - (self.ended_before or 0)
        eta = duration(elapsed / new * (self.trials - ended)) if new else "?"
        ranking = run.ranking
        best = f"best {ranking[0].score:.4f} (trial {ranking[0].number})" if ranking else "no score yet"
        return f"{summary_line(run)}; {best}; elapsed {duration(elapsed)}, about {eta} left"

    def event(self, event: Event) -> None:
        """Print a line on an event that a reader waits for; on a terminal, which has the table, only if trials wait."""
        if event.kind == EventKind.TRIAL_WAITS:
            logger.info(event.text)
        elif event.kind == EventKind.TRIAL_ENDED and self.live is None and self.run is not None:
            logger.info(f"trial {event.trial}: {event.text}  |  {self.headline(self.run)}")
