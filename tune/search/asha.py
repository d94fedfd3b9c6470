"""Early stopping, without Ray: rungs, cutoffs, and the stops that are not carried out.

ASHA in its stopping variant (Li et al. 2020, https://arxiv.org/abs/1810.05934), the median rule (Golovin et al. 2017,
https://doi.org/10.1145/3097983.3098043), and promotion: all trials pause at one rung, and the best ones go on.

The scheduler decides with Rungs while a sweep runs, `voxtune verify` replays the decisions with it, and `voxtune
simulate` replays the curves of a sweep under other rules.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, median
from typing import Final, Literal

import numpy as np

from tune.search.score_noise import RECENT_SCORES, score_noise
from tune.spec.sections import EarlyStopping
from tune.spec.sweep_config import SweepConfig

Decision = Literal["STOP", "CONTINUE", "PAUSE"]
Kept = Literal["", "default", "audit"]  # why a trial goes on that would have been stopped
STOP: Final = "STOP"
CONTINUE: Final = "CONTINUE"
PAUSE: Final = "PAUSE"  # until all trials have come to the rung; then one of the others
MEDIAN_MIN_TRIALS = 3  # a median of fewer scores says little
MARGIN_DEVIATIONS = 0.5  # of the scores' noise, see docs/search.md
RECENT_VALIDATIONS = 3  # whose mean is a value at a rung
AUDIT_STREAM = 7  # sets the draws of the audit apart from others of the study's seed


@dataclass(frozen=True)
class RungDecision:
    """What early stopping decided at a rung.

    value: what the trial was compared by, see rung_value. kept: "" unless the trial would have been stopped here or at
    an earlier rung; then the decision is CONTINUE, and kept says why: it is the trial of the default recipe, or drawn
    by the audit. needed: the lowest value with which the trial would have gone on; None if it was compared with none,
    or in a run of an older version. among: number of other values that it was compared with. margin: by how much
    `needed` is below the cutoff.
    """

    value: float
    decision: Decision
    kept: Kept = ""
    needed: float | None = field(default=None, compare=False)
    among: int = field(default=0, compare=False)
    margin: float = field(default=0.0, compare=False)

    @property
    def is_stop(self) -> bool:
        """Whether the trial is stopped, or would have been, here or at an earlier rung."""
        return self.decision == STOP or bool(self.kept)


def rung_epochs(config: SweepConfig) -> tuple[int, ...]:
    """Return the epochs, before the last, at which trials are compared; none if early_stopping.type is none."""
    stopping, epochs = config.early_stopping, config.fixed("epochs")
    match stopping.type:
        case "none":
            return ()
        case "median":
            return tuple(range(stopping.grace_period, epochs, config.fixed("val_freq")))
        case "promote":
            rung = pause_epoch(config)
            return (rung,) if rung < epochs else ()
    rungs = [stopping.grace_period]
    while rungs[-1] < epochs:
        rungs.append(rungs[-1] * stopping.reduction_factor)
    return tuple(rungs[:-1])


def pause_epoch(config: SweepConfig) -> int:
    """Return the epoch at which `promote` pauses trials: the validated one nearest to epochs / reduction_factor.

    It is the first one from grace_period on if that is later.
    """
    stopping, val_freq = config.early_stopping, int(config.fixed("val_freq"))
    validations = round(config.fixed("epochs") / stopping.reduction_factor / val_freq)
    return val_freq * max(1, validations, math.ceil(stopping.grace_period / val_freq))


def cutoff_rule(stopping: EarlyStopping) -> tuple[float, int]:
    """Return which quantile the cutoff of asha or median is, and of how many values at least."""
    if stopping.type == "median":
        return 0.5, max(MEDIAN_MIN_TRIALS, stopping.min_trials)
    return 1 - 1 / stopping.reduction_factor, stopping.min_trials


def cutoff(values: Sequence[float], stopping: EarlyStopping) -> float:
    """Return the score that a trial at a rung is measured by, from which the margin is still to be subtracted.

    For ASHA the best 1 / reduction_factor of the values reach it, for the median rule the better half: it is a quantile
    of the values, interpolated. For promotion it is the lowest of the best 1 / reduction_factor, rounded up.

    Args:
        values: scores of the trials that reached this rung earlier; for promotion those of all trials at the rung.
        stopping: the section `early_stopping:`.

    Returns:
        -inf if there are fewer values than min_trials, or for the median rule than MEDIAN_MIN_TRIALS; for promotion if
        there are none.
    """
    if stopping.type == "promote":
        worse = len(values) * (stopping.reduction_factor - 1) // stopping.reduction_factor
        return sorted(values)[worse] if values else -np.inf
    quantile, min_trials = cutoff_rule(stopping)
    return float(np.quantile(np.asarray(values), quantile)) if len(values) >= min_trials else -np.inf


def rung_value(scores: Mapping[int, float], epoch: int, kind: Literal["best", "recent"]) -> float:
    """Return what a trial is compared by at a rung.

    Args:
        scores: of its validated epochs, by epoch.
        epoch: of the rung.
        kind: best for the highest score so far, recent for the mean of the last RECENT_VALIDATIONS.
    """
    known = [scores[at] for at in sorted(scores) if at <= epoch]
    return max(known) if kind == "best" else fmean(known[-RECENT_VALIDATIONS:])


def audited(config: SweepConfig, number: int) -> bool:
    """Return whether the audit draws a trial, in case that it would be stopped.

    It depends on the study's seed and the trial's number only, so that a resumed sweep draws the same trials, and a
    larger share draws the same ones and more.
    """
    draw = np.random.default_rng([config.seed, number, AUDIT_STREAM]).random()
    return bool(draw < config.early_stopping.audit)


class Rungs:
    """The values at the rungs of a sweep, in the order in which trials reached them, and the decisions on new ones.

    A trial that goes on although it would have been stopped counts at the rung of that stop, and at no later one: the
    others are decided as if it had been stopped.

    Attributes:
        values: value of each trial that counts, by rung and number.
        kept: why each trial goes on that would have been stopped, by number.
        scores: the last validated scores of each trial, by number and epoch; none unless they are needed.
    """

    def __init__(self, config: SweepConfig) -> None:
        self.config = config
        self.values: dict[int, dict[int, float]] = {epoch: {} for epoch in rung_epochs(config)}
        self.kept: dict[int, Kept] = {}
        self.scores: dict[int, dict[int, float]] = {}
        self._noise: dict[int, float] = {}  # of the scores of each trial that has enough of them

    def observe(self, number: int, epoch: int, score: float) -> None:
        """Note the score of a trial's validated epoch; one that is known already changes nothing."""
        stopping = self.config.early_stopping
        if stopping.margin != "auto" and stopping.value != "recent":
            return
        scores = self.scores.setdefault(number, {})
        if epoch <= max(scores, default=0):
            return
        scores[epoch] = score
        if len(scores) > RECENT_SCORES:
            del scores[min(scores)]
        if (noise := score_noise(list(scores.values()))) is not None:
            self._noise[number] = noise

    @property
    def margin(self) -> float:
        """By how much a trial may be below the cutoff now.

        An estimated one is MARGIN_DEVIATIONS of the median of the trials' noise; 0 if none is known.
        """
        margin = self.config.early_stopping.margin
        if margin == "auto":
            return MARGIN_DEVIATIONS * median(self._noise.values()) if self._noise else 0.0
        return margin

    def value(self, number: int, epoch: int, best: float) -> float:
        """Return what a trial is compared by at a rung.

        best: its highest score up to there; taken too if its scores are not known, as of a trial of an older version.
        """
        kind, scores = self.config.early_stopping.value, self.scores.get(number, {})
        return best if kind == "best" or not scores else rung_value(scores, epoch, kind)

    def decide(
        self,
        number: int,
        epoch: int,
        value: float,
        *,
        default: bool = False,
        earlier: Sequence[float] | None = None,
        margin: float | None = None,
    ) -> RungDecision:
        """Return what becomes of a trial that reaches a rung; nothing is noted.

        Args:
            number: of the trial.
            epoch: of the rung.
            value: what the trial is compared by, see value.
            default: whether it is the trial of the default recipe.
            earlier: the values that it is compared with; None for those noted at the rung.
            margin: None for the one that the scores so far tell.
        """
        if number in self.kept:
            return RungDecision(value, CONTINUE, self.kept[number])
        if self.config.early_stopping.type == "promote":
            return RungDecision(value, PAUSE)
        if earlier is None:
            earlier = list(self.values.get(epoch, {}).values())
        margin = self.margin if margin is None else margin
        bar = cutoff(earlier, self.config.early_stopping)
        return self._compared(number, value, bar, len(earlier), margin, default=default)

    def decide_paused(
        self, number: int, epoch: int, value: float, *, default: bool = False, values: Sequence[float] | None = None
    ) -> RungDecision:
        """Return what becomes of a trial that is paused at a rung, once all trials have come to it or have ended.

        Args:
            number, epoch, value, default: as for decide.
            values: of all trials at the rung, this one's too; None for those noted.
        """
        if values is None:
            values = list(self.values.get(epoch, {}).values())
        bar = cutoff(values, self.config.early_stopping)
        return self._compared(number, value, bar, len(values) - 1, 0.0, default=default)

    def _compared(
        self, number: int, value: float, bar: float, among: int, margin: float, *, default: bool
    ) -> RungDecision:
        if bar == -np.inf:
            return RungDecision(value, CONTINUE)
        compared = (bar - margin, among, margin)
        if value >= bar - margin:
            return RungDecision(value, CONTINUE, "", *compared)
        if default and self.config.protect_default:
            return RungDecision(value, CONTINUE, "default", *compared)
        if audited(self.config, number):
            return RungDecision(value, CONTINUE, "audit", *compared)
        return RungDecision(value, STOP, "", *compared)

    def add(self, number: int, epoch: int, decided: RungDecision) -> None:
        """Note a decision; the decisions on one trial must come in the order of the epochs."""
        if number not in self.kept:
            self.values.setdefault(epoch, {})[number] = decided.value
        if decided.kept:
            self.kept[number] = decided.kept
