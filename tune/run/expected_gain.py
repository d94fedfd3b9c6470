"""What more trials of a sweep are expected to bring, from the scores of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from optuna.trial import TrialState

from tune.run.events import end_times, read_events
from tune.run.results import Run, TrialResult

MORE_TRIALS = 8
FEWEST_FINISHED = 4  # trials that trained to their end
TOP_SHARE = 0.5  # of the finished trials, whose distances tell how the scores thin out towards the best
SHAPE = -0.2  # of the tail: between the exponential one (0) and that of evenly spread scores (-1), as Dice has a limit
LEAST_SCALE = 0.2  # at the best score, of that at the threshold
DRAWS = 4000
LEAST, MOST = 0.1, 0.9  # quantiles of the printed range


@dataclass(frozen=True)
class ExpectedGain:
    """What MORE_TRIALS more trials are expected to add to the best score: the mean, and 8 of 10 cases."""

    mean: float
    low: float
    high: float

    def text(self) -> str:
        """Return it as "about +0.0020 (0 to 0.0060)"."""
        low = f"{self.low:.4f}" if self.low >= 5e-5 else "0"
        return f"about +{self.mean:.4f} ({low} to {self.high:.4f})"


def expected_gain(run: Run) -> ExpectedGain | None:
    """Return what MORE_TRIALS more trials are expected to bring; None before FEWEST_FINISHED have trained to their end.

    It takes the next trials for as good as those so far, so for a searcher that has learned it is cautious, and the
    scores are those of the sweep, noise included.
    """
    ended = [trial for trial in run.own_trials if counts(trial)]
    scores = [trial.score for trial in ended if trial.finished and trial.score is not None]
    return gain_of(scores, len(ended))


def counts(trial: TrialResult) -> bool:
    """Return whether a trial tells what another may bring: it has ended, by itself or by early stopping."""
    return trial.state in (TrialState.COMPLETE, TrialState.PRUNED) and not trial.outside_space


def gain_of(scores: Sequence[float], tried: int, more: int = MORE_TRIALS) -> ExpectedGain | None:
    """Return what `more` trials are expected to add to the best of these scores; None with too few.

    Of trials in any order, the chance that one beats the best of n is 1 / (n + 1). By how much is told by how the best
    ones thin out: above a threshold, the k-th best score, scores are taken to follow a generalized Pareto distribution,
    as the tails of most distributions do (Pickands 1975, https://doi.org/10.1214/aos/1176343003), of the shape SHAPE,
    with the mean distance of the k best from it, which is itself known from k distances only.

    Args:
        scores: of the trials that trained to their end.
        tried: number of trials that have ended, stopped ones among them.
    """
    if len(scores) < FEWEST_FINISHED:
        return None
    ordered = np.sort(np.asarray(scores, np.float64))[::-1]
    top = max(FEWEST_FINISHED - 1, round(TOP_SHARE * len(ordered)))
    top = min(top, len(ordered) - 1)
    threshold, best = float(ordered[top]), float(ordered[0])
    rng = np.random.default_rng(0)
    distance = (ordered[:top] - threshold).mean() * rng.gamma(top, 1 / top, size=DRAWS)
    scale = (1 - SHAPE) * distance  # at the threshold; it falls towards the end of the tail
    scale = np.maximum(scale + SHAPE * (best - threshold), LEAST_SCALE * scale)
    better = rng.binomial(more, rng.beta(1, max(tried, len(scores)), size=DRAWS))
    share_above = 1 - rng.random(DRAWS) ** (1 / np.maximum(better, 1))  # of the best of those that are better
    excess = scale * (1 - share_above**-SHAPE) / -SHAPE
    gains = np.where(better > 0, np.minimum(excess, 1.0 - best), 0.0)
    low, high = np.quantile(gains, [LEAST, MOST])
    return ExpectedGain(float(gains.mean()), float(low), float(high))


def trials_since_best(run: Run) -> int:
    """Return how many trials have ended since the best one did; 0 without a finished trial.

    Those whose end is no event count if they started after the best one.
    """
    best = next((trial for trial in run.ranking[:1] if trial.finished), None)
    if best is None or best.imported_from:
        return 0
    ends = end_times(read_events(run.dir.events))

    def later(trial: TrialResult) -> bool:
        if {trial.number, best.number} <= ends.keys():
            return ends[trial.number] > ends[best.number]
        return trial.number > best.number

    return sum(counts(trial) and later(trial) for trial in run.own_trials)


def enough_reached(run: Run) -> str:
    """Return why study.enough ends a sweep now, in words; "" if it is not given or does not yet.

    At least MORE_TRIALS must have ended, and no running trial may score above the best finished one.
    """
    enough = run.config.budget.enough
    ended = [trial for trial in run.own_trials if trial.state.is_finished()]
    if enough is None or len(ended) < MORE_TRIALS:
        return ""
    finished = (trial.score for trial in run.ranking if trial.finished and trial.score is not None)
    best = max(finished, default=math.inf)
    if any(t.state == TrialState.RUNNING and (t.score or 0.0) > best for t in run.ranking):
        return ""
    gain = expected_gain(run)
    if gain is None or gain.mean >= enough:
        return ""
    return f"study.enough: another {MORE_TRIALS} trials are expected to bring {gain.text()}, less than {enough:g}"


def ended_as_asked(run: Run) -> bool:
    """Return whether a sweep has ended before its last trial because study.target or study.enough is reached."""
    return run.target_reached or bool(enough_reached(run))
