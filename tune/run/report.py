"""Tables of trials, and the live one while a sweep runs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from optuna.trial import TrialState
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from trainable.core.brats import REGIONS
from tune.run.results import Run, TrialResult

MAX_ROWS = 16
COLOURS = {
    TrialState.COMPLETE: "green",
    TrialState.PRUNED: "yellow",
    TrialState.FAIL: "red",
    TrialState.RUNNING: "cyan",
}


def make_console() -> Console:
    """Standard output; wide enough for a table where it is no terminal."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=150)


def duration(seconds: float) -> str:
    """Seconds as 1:05 or 2:03:04."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def format_value(value: object) -> str:
    """A value of a recipe in few characters."""
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(format_value, value)) + "]"
    return f"{value:.3g}" if isinstance(value, float) else str(value).lower()


def trial_table(trials: Sequence[TrialResult], epochs: int, *, title: str = "", recipes: bool = True) -> Table:
    """Trials as a table: epoch reached, scores at the best epoch, how it ended, the searched values."""
    table = Table(title=title or None, box=None, header_style="bold", padding=(0, 1), title_justify="left")
    for name in ("trial", "epoch", "best at", *REGIONS, "score"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("ended", no_wrap=True)
    costs = any(trial.cost is not None for trial in trials)
    if costs:
        table.add_column("cost in s", justify="right", no_wrap=True)
    if recipes:
        table.add_column("recipe", overflow="fold")
    for trial in trials:
        dice = [f"{trial.dice[region]:.4f}" if trial.dice else "" for region in REGIONS]
        score = "" if trial.score is None else f"{trial.score:.4f}"
        best_at = str(trial.best_epoch or "")
        row = [str(trial.number), f"{trial.epoch}/{epochs}", best_at, *dice, score]
        source = f" ({Path(trial.imported_from).name})" if trial.imported_from else ""
        row.append(f"[{COLOURS[trial.state]}]{trial.status}{source}[/]")
        if costs:
            row.append("" if trial.cost is None else f"{trial.cost:.1f}")
        if recipes:
            row.append(" ".join(f"{name}={format_value(value)}" for name, value in trial.values.items()))
        table.add_row(*row)
    return table


def summary_line(run: Run) -> str:
    """How many trials are in which state, and the epochs that they took."""
    own = run.own_trials
    states = [trial.status for trial in own]
    parts = [f"{states.count(state)} {state}" for state in dict.fromkeys(sorted(states))]
    epochs = sum(trial.epoch for trial in own)
    taken = f", {len(run.trials) - len(own)} more of earlier runs" if len(own) < len(run.trials) else ""
    return f"{len(own)} of {run.config.budget.trials} trials{taken}: {', '.join(parts)}; {epochs} epochs"


class LiveTable:
    """The sweep while it runs: a table that refreshes on a terminal, a line for each ended trial elsewhere."""

    def __init__(self, console: Console, epochs: int, trials: int) -> None:
        self.console, self.epochs, self.trials = console, epochs, trials
        self.started = self.refreshed = time.monotonic()
        self.ended_before: int | None = None
        self.live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None

    def __enter__(self) -> LiveTable:
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.live.stop()

    def due(self) -> bool:
        """At most one refresh a second."""
        return time.monotonic() - self.refreshed >= 1

    def refresh(self, run: Run) -> None:
        """Draw the table anew."""
        self.refreshed = time.monotonic()
        if self.ended_before is None:
            self.ended_before = sum(trial.state != TrialState.RUNNING for trial in run.own_trials)
        if self.live is None:
            return
        running = [trial for trial in run.trials if trial.state == TrialState.RUNNING]
        best = run.ranking[: max(0, MAX_ROWS - len(running))]
        rows = running + [trial for trial in best if trial.state != TrialState.RUNNING]
        self.live.update(Group(Text(self.headline(run)), trial_table(rows, self.epochs)), refresh=True)

    def headline(self, run: Run) -> str:
        """Counts, best so far, elapsed, and when it will end."""
        elapsed = time.monotonic() - self.started
        ended = sum(trial.state != TrialState.RUNNING for trial in run.own_trials)
        new = ended - (self.ended_before or 0)
        eta = duration(elapsed / new * (self.trials - ended)) if new else "?"
        ranking = run.ranking
        best = f"best {ranking[0].score:.4f} (trial {ranking[0].number})" if ranking else "no score yet"
        return f"{summary_line(run)}; {best}; elapsed {duration(elapsed)}, about {eta} left"

    def ended(self, trial: TrialResult, run: Run) -> None:
        """Say that a trial ended."""
        if self.live is None:
            score = "no score" if trial.score is None else f"{run.config.objective.score} {trial.score:.4f}"
            why = f": {trial.error}" if trial.error else ""
            line = f"trial {trial.number}: {trial.status} at epoch {trial.epoch}/{self.epochs}, {score}{why}"
            self.say(f"{line}  |  {self.headline(run)}")

    def say(self, text: str) -> None:
        """Print a line as it is, above the table."""
        self.console.print(text, markup=False, soft_wrap=True)
