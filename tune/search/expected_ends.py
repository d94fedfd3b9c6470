"""Where trials would end: the score of a whole training, estimated for other trials too, with its uncertainty."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from optuna.trial import FrozenTrial, TrialState

from trainable.training.epoch_result import EndReason
from tune.search.trial_progress import Progress, paused_at

LAST = 3  # validations whose mean is a trial's level: a single one is noisy, and the best of many is a lucky one
MIN_WHOLE = 2  # trained to their end, from which the gain of the others is estimated


@dataclass(frozen=True)
class Curve:
    """The validated scores of an ended or paused trial, in order; none if it diverged.

    whole: whether it trained to its end. paused: whether it waits at a rung to which all trials come.
    """

    number: int
    scores: tuple[float, ...]
    whole: bool
    paused: bool = False


@dataclass(frozen=True)
class ExpectedEnd:
    """The score that a trial has at its end, or would have. variance: of this estimate."""

    number: int
    score: float
    variance: float


def ended_curves(trials: Sequence[FrozenTrial]) -> list[Curve]:
    """Return the curves of the trials that trained to their end, were stopped early, pause or diverged.

    Those that failed or ran out of memory are left out: they ended for other reasons than their scores.
    """
    curves = []
    for frozen in trials:
        reason = Progress.from_attrs(frozen.user_attrs).end_reason
        if frozen.state not in (TrialState.COMPLETE, TrialState.PRUNED) or reason == EndReason.OUT_OF_MEMORY:
            continue
        scores = tuple(score for _, score in sorted(frozen.intermediate_values.items()))
        if reason == EndReason.NON_FINITE:
            curves.append(Curve(frozen.number, (), False))
        elif scores:
            paused = paused_at(frozen.user_attrs) is not None
            curves.append(Curve(frozen.number, scores, frozen.state == TrialState.COMPLETE, paused))
    return curves


def validation_noise(curves: Sequence[Curve]) -> float | None:
    """Return the standard deviation of a single validation; None if too few are known.

    From the second differences of the later two thirds of the curves, which have little else than noise; their median,
    so that a few jumps do not count.
    """
    found: list[float] = []
    for curve in curves:
        scores = np.array(curve.scores)
        if len(scores) >= 4:
            second = np.abs(scores[2:] - 2 * scores[1:-1] + scores[:-2]) / 6**0.5
            found += second[len(scores) // 3 :].tolist()
    return 1.4826 * float(np.median(found)) if len(found) >= 6 else None


def expected_ends(curves: Sequence[Curve]) -> list[ExpectedEnd]:
    """Return where the trials of these curves end or would end.

    A stopped trial is expected to gain what the trials gained, in the median, that trained to their end: from the
    validations at which it was stopped. How far these gains differ is its uncertainty: where early scores mislead, a
    stopped trial says little. Stopped ones are left out while fewer than MIN_WHOLE have trained to their end.

    Until then, if trials pause at a rung, all that came to it are compared there, as promotion does, without a gain:
    all curves are of one length, and nobody was stopped for its score before.

    One that diverged is as bad as the worst of the others, for sure, whatever it had reached before.
    """
    noise = validation_noise(curves)
    gains: dict[int, tuple[float, float] | None] = {}  # by the number of validations: many are stopped at one rung
    rung = min((len(curve.scores) for curve in curves if curve.paused), default=0)
    if rung and sum(curve.whole and len(curve.scores) > rung for curve in curves) < MIN_WHOLE:
        gains[rung] = 0.0, 0.0
        curves = [replace(c, scores=c.scores[:rung], whole=False) if len(c.scores) >= rung else c for c in curves]
    whole = [np.array(curve.scores) for curve in curves if curve.whole]
    found = []
    for curve in (curve for curve in curves if curve.scores):
        length = len(curve.scores)
        count = min(LAST, length if curve.whole else max(1, length // 2))
        level = sum(curve.scores[-count:]) / count
        variance = (noise or 0.0) ** 2 / count
        if not curve.whole:
            if length not in gains:
                gains[length] = gain_after(length, count, whole)
            if (gain := gains[length]) is None:
                continue
            level, variance = level + gain[0], variance + gain[1]
        found.append(ExpectedEnd(curve.number, level, variance))
    worst = min((end.score for end in found), default=None)
    diverged = [curve.number for curve in curves if not curve.scores]
    return found if worst is None else found + [ExpectedEnd(number, worst, 0.0) for number in diverged]


def gain_after(length: int, count: int, whole: Sequence[NDArray[np.float64]]) -> tuple[float, float] | None:
    """Return what a trial gains that is stopped after some validations, and the variance of that.

    Args:
        length: number of its validations.
        count: of these, the last ones whose mean is its level.
        whole: curves of the trials that trained to their end; of them the longer ones tell.

    Returns:
        None if fewer than MIN_WHOLE are longer.
    """
    longer = [scores for scores in whole if len(scores) > length]
    if len(longer) < MIN_WHOLE:
        return None
    gains = [float(scores[-LAST:].mean() - scores[length - count : length].mean()) for scores in longer]
    unsure = (0.5 * float(np.median(np.abs(gains)))) ** 2 / len(gains)
    return float(np.median(gains)), float(np.var(gains)) + unsure
