"""How long a sweep will go on, as a range."""

from __future__ import annotations

import math
from statistics import fmean, stdev

from optuna.trial import TrialState

from tune.run.results import Run
from tune.search.asha import rung_epochs

QUANTILE = 1.64  # of the normal distribution: the sum of the trials that are left is in the range in 9 of 10 sweeps
MIN_ENDED = 3  # trials from which a mean and its spread are taken


def estimate_time_left(run: Run, slots: int) -> tuple[float, float] | None:
    """Return the least and the most seconds that the sweep is likely to go on; None until an epoch is reported.

    Trials that are to be started are expected to take as long as those that have ended; before MIN_ENDED have, between
    the first rung and the last epoch. Of the running ones the least is that all are stopped now, the most that all
    train to their end.

    slots: number of trials that run at once.
    """
    own, epochs = run.own_trials, run.config.fixed("epochs")
    begun = [trial for trial in own if trial.epoch and trial.seconds > 0]
    if not begun:
        return None
    per_epoch = sum(trial.seconds for trial in begun) / sum(trial.epoch for trial in begun)
    low, high = seconds_of(run.trials_left, run, per_epoch)
    rest = [(epochs - trial.epoch) * per_epoch for trial in own if trial.state == TrialState.RUNNING]
    longest = max([*rest, *[epochs * per_epoch] * bool(run.trials_left)], default=0.0)
    return low / slots, max((high + sum(rest)) / slots, longest)


def seconds_of(trials: int, run: Run, per_epoch: float) -> tuple[float, float]:
    """Return the least and the most seconds of training that this many more trials are likely to take in all."""
    full = run.config.fixed("epochs") * per_epoch
    ended = [trial.seconds for trial in run.own_trials if trial.state != TrialState.RUNNING and trial.seconds > 0]
    if len(ended) < MIN_ENDED:
        return trials * per_epoch * next(iter(rung_epochs(run.config)), run.config.fixed("epochs")), trials * full
    spread = QUANTILE * stdev(ended) * math.sqrt(trials * (1 + trials / len(ended)))
    expected = trials * fmean(ended)
    return max(trials * min(ended), expected - spread), max(expected, min(expected + spread, trials * full))
