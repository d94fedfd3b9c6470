"""What the sections of a sweep's report are made from, read once."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from optuna.trial import TrialState

from trainable.core.options import format_value, option_info, to_dict
from trainable.training.training_log import read_rows
from tune.analysis.option_range import value_label
from tune.report.privacy import Privacy, privacy_of
from tune.run.effort import Effort, measure_effort
from tune.run.events import Event, has_ended, read_events
from tune.run.results import Run, TrialResult

DASH = "\N{EN DASH}"  # for what is not known
Curve = tuple[list[int], list[float]]  # validated epochs and their scores


@dataclass(frozen=True)
class SweepData:
    """A run as it was read, and what its report may name."""

    run: Run
    events: list[Event]
    privacy: Privacy

    @cached_property
    def effort(self) -> Effort:
        """What the run has cost."""
        return measure_effort(self.run)

    @property
    def epochs(self) -> int:
        """The epochs of a whole training."""
        return int(self.run.config.fixed("epochs"))

    @property
    def score_name(self) -> str:
        """What is maximised, as people call it: "mean Dice" or "Dice of ET"."""
        part = self.run.config.objective.score.removeprefix("val_dice_")
        return "mean Dice" if part == "mean" else f"Dice of {part}"

    @cached_property
    def state(self) -> str:
        """Whether the sweep is running, has ended, ended early (a budget was spent), or was interrupted."""
        if self.run.driven:
            return "running"
        if any(trial.state == TrialState.RUNNING for trial in self.run.own_trials):
            return "interrupted"
        return "ended early" if self.run.unfinished and not self.run.target_reached else "ended"

    @property
    def winner(self) -> TrialResult | None:
        """The best trial that trained to its end; None while there is none."""
        ranking = self.run.ranking
        return ranking[0] if ranking and ranking[0].finished else None

    @cached_property
    def default_recipe(self) -> dict[str, Any]:
        """All options of the default recipe, as plain values."""
        return to_dict(self.run.config.base_config())

    def changes(self, trial: TrialResult) -> dict[str, Any]:
        """Return the searched options of a trial that differ from the default recipe; of one outside the space all."""
        values = {name: value for name, value in trial.recipe.items() if option_info(name).role == "recipe"}
        return {n: value for n, value in (values or trial.values).items() if value != self.default_recipe[n]}

    def recipe_line(self, trial: TrialResult) -> str:
        """Return a trial's recipe where it differs from the default one, in one line."""
        changes = " ".join(f"{name}={value_text(value)}" for name, value in self.changes(trial).items())
        return changes or "the default recipe"

    @cached_property
    def curves(self) -> dict[int, Curve]:
        """The learning curve of each trial that has a validated epoch, by number."""
        found = {trial.number: self._curve(trial) for trial in self.run.own_trials}
        return {number: curve for number, curve in found.items() if curve[0]}

    def _curve(self, trial: TrialResult) -> Curve:
        column, epochs, scores = self.run.config.objective.score, list[int](), list[float]()
        for row in read_rows(self.run.dir.trial(trial.number).metrics):
            if (text := row.get(column)) and math.isfinite(score := float(text)):
                epochs.append(int(row["epoch"]))
                scores.append(round(score, 4))
        return epochs, scores


def read_sweep(run: Run, *, anonymous: bool) -> SweepData:
    """Return a run with what its report needs."""
    events = read_events(run.dir.events)
    if has_ended(events):  # its driver holds the lock to have this report written
        trials = [replace(trial, interrupted=trial.state == TrialState.RUNNING) for trial in run.trials]
        run = replace(run, trials=trials, driven=False)
    return SweepData(run, events, privacy_of(run, events, anonymous=anonymous))


def value_text(value: Any) -> str:
    """Return a value of a recipe as short text."""
    return value_label(list(value)) if isinstance(value, list | tuple) else format_value(value)


def score_text(score: float | None) -> str:
    """Return a Dice with four digits; a dash for none."""
    return DASH if score is None else f"{score:.4f}"


def share_text(share: float) -> str:
    """Return a share from 0 to 1 as a percentage."""
    return f"{100 * share:.0f} %"


def time_text(seconds: float) -> str:
    """Return a time in its natural unit: 12 s, 5.2 min, 3.4 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:,.1f} h"


def numbers_text(numbers: list[int], most: int = 12) -> str:
    """Return numbers of trials as text, `most` of them at most."""
    shown = ", ".join(map(str, numbers[:most]))
    return shown + (f" and {len(numbers) - most} more" if len(numbers) > most else "")
