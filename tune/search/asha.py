"""Early stopping as pure functions.

ASHA in its stopping variant (Li et al. 2020, https://arxiv.org/abs/1810.05934), and the median rule (Golovin et al.
2017, https://doi.org/10.1145/3097983.3098043).

The scheduler decides with them while a sweep runs, and `voxtune verify` replays the decisions with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

import numpy as np

from tune.spec.sections import EarlyStopping
from tune.spec.sweep_config import SweepConfig

Decision = Literal["STOP", "CONTINUE"]
STOP: Final = "STOP"
CONTINUE: Final = "CONTINUE"
MEDIAN_MIN_TRIALS = 3  # a median of fewer scores says little


def rung_epochs(config: SweepConfig) -> tuple[int, ...]:
    """Return the epochs, before the last, at which trials are compared; none if early_stopping.type is none."""
    stopping, epochs = config.early_stopping, config.fixed("epochs")
    match stopping.type:
        case "none":
            return ()
        case "median":
            return tuple(range(stopping.grace_period, epochs, config.fixed("val_freq")))
    rungs = [stopping.grace_period]
    while rungs[-1] < epochs:
        rungs.append(rungs[-1] * stopping.reduction_factor)
    return tuple(rungs[:-1])


def cutoff(values: Sequence[float], stopping: EarlyStopping) -> float:
    """Return the lowest score with which a trial goes on at a rung: a quantile of `values`, interpolated.

    For ASHA the best 1 / reduction_factor of the values reach it, for the median rule the better half.

    Args:
        values: scores of the trials that reached this rung earlier.
        stopping: the section `early_stopping:`.

    Returns:
        -inf if there are too few values: none for ASHA, fewer than MEDIAN_MIN_TRIALS for the median rule.
    """
    quantile, min_trials = 1 - 1 / stopping.reduction_factor, 1
    if stopping.type == "median":
        quantile, min_trials = 0.5, MEDIAN_MIN_TRIALS
    return float(np.quantile(np.asarray(values), quantile)) if len(values) >= min_trials else -np.inf


def decide(value: float, values_at_rung: Sequence[float], stopping: EarlyStopping) -> Decision:
    """Return STOP for a trial that reaches a rung with a score below the cutoff, else CONTINUE.

    Args:
        value: the trial's best score so far, since that is what a trial is judged by in the end.
        values_at_rung: the same of the trials that reached this rung earlier.
        stopping: the section `early_stopping:`.
    """
    return STOP if value < cutoff(values_at_rung, stopping) else CONTINUE
