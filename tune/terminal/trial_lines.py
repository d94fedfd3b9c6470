"""A line per trial: number, epoch, score, sparkline, state, and the options that differ from the default recipe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from optuna.trial import TrialState
from rich.text import Text

from tune.run.curves import trial_curve
from tune.run.live_state import Activity, LiveState
from tune.run.results import Run, TrialResult
from tune.search.asha import Kept, rung_epochs
from tune.terminal.recipe_words import RecipeWords
from tune.terminal.sparkline import column_of, scale_of, sparkline
from tune.terminal.text_lines import TICK, fit, progress_bar

COLOURS = {
    TrialState.COMPLETE: "green",
    TrialState.PRUNED: "yellow",
    TrialState.FAIL: "red",
    TrialState.RUNNING: "cyan",
}
MAX_RUNGS = 6  # with a tick each; the median rule has a rung per validation
KEPT: dict[Kept, str] = {"": "", "default": "protected", "audit": "audited"}  # notes on trials that were not stopped


@dataclass(frozen=True)
class Widths:
    """Columns of the parts of a line; the recipe has what is left of `total`."""

    total: int
    number: int
    epoch: int
    curve: int
    state: int

    @property
    def recipe(self) -> int:
        """Columns of the recipe."""
        return max(0, self.total - self.number - self.epoch - 6 - self.curve - self.state - 5)


def choose_widths(run: Run, total: int) -> Widths:
    """Return the widths of a run's lines; the curve has a column per validation if there is room."""
    epochs = run.config.fixed("epochs")
    validations = -(-epochs // run.config.fixed("val_freq"))
    return Widths(
        total,
        number=max(5, len(str(len(run.trials))) + 1),
        epoch=max(5, 2 * len(str(epochs)) + 1),
        curve=min(max(validations, 5), max(8, total // 6)),
        state=min(28, max(18, total // 4)),
    )


def state_text(trial: TrialResult) -> str:
    """Return how a trial ended, with a note if it was not stopped, or was imported."""
    notes = filter(None, (KEPT[trial.kept], Path(trial.imported_from).name))
    return trial.status + "".join(f" ({note})" for note in notes)


def activity_text(activity: Activity, width: int) -> str:
    """Return what a running trial is doing: a bar, steps and patches per second, or cases while it validates."""
    if activity.phase == "starting":
        return "starts"
    done = f"{activity.done}/{activity.total}"
    if activity.phase == "validating":
        return f"validates {done}"
    rates = [""]
    if (rate := activity.patches_per_second) is not None:
        rates = [f" {rate:.3g} patches/s", f" {rate:.3g}/s", ""]
    after = next((text for rate in rates if len(text := f" {done}{rate}") + 4 <= width), f" {done}")
    share = activity.done / activity.total if activity.total else 0.0
    return progress_bar(share, max(1, min(10, width - len(after)))) + after


class TrialLines:
    """Draws the trials of a run as lines of one width, with curves on one scale.

    live: what the running trials are doing; None if not known, or if nothing drives the sweep.
    """

    def __init__(self, run: Run, live: LiveState | None, width: int) -> None:
        self.run, self.words, self.widths = run, RecipeWords(run), choose_widths(run, width)
        self.activities = {activity.number: activity for activity in live.activities} if live else {}
        self.epochs, rungs = run.config.fixed("epochs"), rung_epochs(run.config)
        self.rungs = rungs if len(rungs) <= MAX_RUNGS else ()
        self.winner = run.ranking[0].number if run.ranking and run.ranking[0].finished else None

    def heading(self) -> Text:
        """Return the names of the columns; ticks above the curves show the rungs."""
        widths = self.widths
        columns = {column_of(epoch, self.epochs, widths.curve) for epoch in self.rungs}
        ticks = "".join(TICK if column in columns else " " for column in range(widths.curve))
        curve = "curve" + ticks[5:] if widths.curve > 5 else "curve"
        return Text(self._join("trial", "epoch", "score", curve, "state", "recipe"), "bold")

    def draw(self, trials: Sequence[TrialResult]) -> list[Text]:
        """Return a line per trial."""
        curves = {trial.number: trial_curve(self.run, trial) for trial in trials}
        scale = scale_of(curves.values())
        lines = []
        for trial in trials:
            activity = self.activities.get(trial.number) if trial.status == "running" else None
            epoch = max(trial.epoch, activity.epoch) if activity else trial.epoch
            score = "" if trial.score is None else f"{trial.score:.4f}"
            curve = sparkline(curves[trial.number], self.epochs, self.widths.curve, scale, self.rungs)
            state = activity_text(activity, self.widths.state) if activity else state_text(trial)
            number = f"{'*' * (trial.number == self.winner)}{trial.number}"
            text = self._join(number, f"{epoch}/{self.epochs}", score, curve, state, self.words.short(trial))
            lines.append(self._coloured(text, trial))
        return lines

    def _join(self, number: str, epoch: str, score: str, curve: str, state: str, recipe: str) -> str:
        widths = self.widths
        left = f"{number:>{widths.number}} {epoch:>{widths.epoch}} {score:>6} {curve:{widths.curve}}"
        return f"{left} {fit_padded(state, widths.state)} {fit(recipe, widths.recipe)}".rstrip()

    def _coloured(self, line: str, trial: TrialResult) -> Text:
        text = Text(line)
        start = self.widths.number + self.widths.epoch + 9
        end = start + self.widths.curve + 1 + self.widths.state
        text.stylize(COLOURS[trial.state], start, end)
        if trial.number == self.winner:
            text.stylize("bold", 0, start)
        return text


def fit_padded(text: str, width: int) -> str:
    """Return a text cut or filled to a width; unlike `fit` it keeps the spaces of a bar."""
    return fit(text, width).ljust(width) if len(text) > width else text.ljust(width)
