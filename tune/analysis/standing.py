"""How trials stand against each other, stopped ones included: the share of the others that each one beats."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tune.run.results import TrialResult

DIVERGED, HEALTHY = 0.0, 1.0  # values at a rung before the first one, at which only diverged trials have ended


def comparable(trial: TrialResult) -> bool:
    """Return whether a trial says something of its recipe: it trained to its end, was stopped early or diverged.

    Running trials may still change; failed ones and those out of memory ended for other reasons than their scores.
    """
    if trial.outside_space or trial.status not in ("complete", "out of patience", "stopped early", "not finite"):
        return False
    return trial.status == "not finite" or trial.score is not None


def measure_standings(trials: Sequence[TrialResult]) -> NDArray[np.float64]:
    """Return the share of the other trials that each one beats, (trials,), from 0 to 1; a tie counts as half.

    Two trials are compared at the last rung that both have reached, by the values that early stopping took there, or by
    their best scores if both trained to the end. So a stopped trial is compared with longer ones at the epoch at which
    it was stopped, whatever these scored later. A diverged trial is beaten by all others.

    Args:
        trials: comparable ones.
    """
    values, reached = _values_at_rungs(trials)
    beaten = np.zeros(len(trials))
    for level in range(values.shape[1]):
        at_level = values[:, level]
        ended_here, went_on = reached == level, reached > level
        # Those that ended here meet all that came so far; those that went on meet only those that ended here.
        beaten[ended_here] += _count_below(at_level[ended_here], at_level[ended_here | went_on]) - 0.5  # but itself
        beaten[went_on] += _count_below(at_level[went_on], at_level[ended_here])
    return beaten / max(len(trials) - 1, 1)


def _values_at_rungs(trials: Sequence[TrialResult]) -> tuple[NDArray[np.float64], NDArray[np.int_]]:
    """Return the values of trials at each rung (trials, rungs + 2), and the index of the last one that each reached.

    The first column tells diverged trials from others, the last one has the scores of those that trained to their end.
    """
    epochs = sorted({epoch for trial in trials for epoch in trial.rungs})
    values = np.full((len(trials), len(epochs) + 2), HEALTHY)
    reached = np.zeros(len(trials), int)
    for row, trial in enumerate(trials):
        if trial.status == "not finite":
            values[row, 0] = DIVERGED
            continue
        score = trial.score or 0.0
        known = [trial.rungs[epoch].value if epoch in trial.rungs else score for epoch in epochs]
        values[row, 1:] = [*known, score]
        stopped = trial.status == "stopped early" and trial.stop_epoch in epochs
        reached[row] = 1 + (epochs.index(trial.stop_epoch or 0) if stopped else len(epochs))
    return values, reached


def _count_below(values: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return for each value how many of the others are lower; an equal one counts as half."""
    ordered = np.sort(others)
    return (np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right")) / 2
