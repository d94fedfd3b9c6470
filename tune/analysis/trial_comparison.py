"""Compares trials of one run: their recipes, their scores at each rung, and their scores case by case."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from trainable.core.errors import InputError
from trainable.evaluation.comparison import Comparison, compare_predictions
from trainable.training.case_scores import SCORE_COLUMNS, read_case_scores
from tune.run.results import Run, TrialResult

if TYPE_CHECKING:  # it imports torch, and what only reads a run does without it
    from trainable.evaluation.metrics import Scores


@dataclass(frozen=True)
class CaseDifference:
    """The first trial's scores minus another one's, on the validation cases, each at its best epoch.

    other: number of the other trial. cases: how many both have. better, worse: in how many the first has the higher or
    the lower mean Dice. differences: by score, such as dice_ET; empty without common cases.
    """

    other: int
    cases: int
    better: int
    worse: int
    differences: dict[str, Comparison]


@dataclass(frozen=True)
class TrialComparison:
    """Trials of a run side by side.

    options: the searched options in which they differ, with the value in each trial, None where it is inactive.
    differences: of the first trial to each other one that has scores per case.
    """

    trials: tuple[TrialResult, ...]
    options: dict[str, tuple[Any, ...]]
    differences: tuple[CaseDifference, ...]

    @property
    def rungs(self) -> list[int]:
        """The epochs of the rungs that any of them reached."""
        return sorted({epoch for trial in self.trials for epoch in trial.rungs})


def compare_trials(run: Run, numbers: Sequence[int]) -> TrialComparison:
    """Compare trials of a run.

    Raises:
        InputError: if a number is given twice or there is no such trial, or case_scores.csv is damaged.
    """
    if len(set(numbers)) < len(numbers):
        raise InputError(f"the trials {', '.join(map(str, numbers))} have a number twice; give different ones")
    trials = tuple(run.trial(number) for number in numbers)
    first, *others = (best_case_scores(run, trial) for trial in trials)
    differences = [
        difference_by_case(trial.number, first, scores)
        for trial, scores in zip(trials[1:], others, strict=True)
        if first and scores
    ]
    return TrialComparison(trials, differing([trial.values for trial in trials]), tuple(differences))


def best_case_scores(run: Run, trial: TrialResult) -> Mapping[str, Scores]:
    """Return the scores per case of a trial's best epoch; {} if they are not there, as before a validated epoch."""
    return read_case_scores(run.dir.trial(trial.number).case_scores).get(trial.best_epoch, {})


def difference_by_case(number: int, first: Mapping[str, Scores], other: Mapping[str, Scores]) -> CaseDifference:
    """Return how the first trial's scores differ from those of trial `number`, on the cases of both."""
    cases = [case for case in first if case in other]
    values = {
        column: [np.array([scores[case][column] for case in cases]) for scores in (first, other)]
        for column in SCORE_COLUMNS
    }
    ours, theirs = values[SCORE_COLUMNS[-1]]
    differences = {column: compare_predictions(*pair) for column, pair in values.items()} if cases else {}
    return CaseDifference(number, len(cases), int((ours > theirs).sum()), int((ours < theirs).sum()), differences)


def differing(recipes: Sequence[Mapping[str, Any]]) -> dict[str, tuple[Any, ...]]:
    """Return the options that are not the same in all recipes, with the value in each; None where one lacks it."""
    names = dict.fromkeys(name for recipe in recipes for name in recipe)
    values = {name: tuple(recipe.get(name) for recipe in recipes) for name in names}
    return {name: of for name, of in values.items() if any(value != of[0] for value in of)}
