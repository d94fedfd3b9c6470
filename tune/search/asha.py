"""Early stopping, without Ray: rungs, cutoffs, and the stops that are not carried out.

ASHA in its stopping variant (Li et al. 2020, https://arxiv.org/abs/1810.05934), and the median rule (Golovin et al.
2017, https://doi.org/10.1145/3097983.3098043).

The scheduler decides with Rungs while a sweep runs, `voxtune verify` replays the decisions with it, and `voxtune
simulate` replays the curves of a sweep under other rules.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np

from tune.spec.sections import EarlyStopping
from tune.spec.sweep_config import SweepConfig

Decision = Literal["STOP", "CONTINUE"]
Kept = Literal["", "default", "audit"]  # why a trial goes on that would have been stopped
STOP: Final = "STOP"
CONTINUE: Final = "CONTINUE"
MEDIAN_MIN_TRIALS = 3  # a median of fewer scores says little
AUDIT_STREAM = 7  # sets the draws of the audit apart from others of the study's seed


@dataclass(frozen=True)
class RungDecision:
    """What early stopping decided at a rung.

    value: the trial's best score up to that rung. kept: "" unless the trial would have been stopped here or at an
    earlier rung; then the decision is CONTINUE, and kept says why: it is the trial of the default recipe, or drawn by
    the audit. needed: the lowest value with which the trial would have gone on; None if it was compared with none, or
    in a run of an older version. among: number of earlier values that it was compared with.
    """

    value: float
    decision: Decision
    kept: Kept = ""
    needed: float | None = field(default=None, compare=False)
    among: int = field(default=0, compare=False)

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
    rungs = [stopping.grace_period]
    while rungs[-1] < epochs:
        rungs.append(rungs[-1] * stopping.reduction_factor)
    return tuple(rungs[:-1])


def cutoff_rule(stopping: EarlyStopping) -> tuple[float, int]:
    """Return which quantile the cutoff is, and of how many values at least."""
    return (0.5, MEDIAN_MIN_TRIALS) if stopping.type == "median" else (1 - 1 / stopping.reduction_factor, 1)


def cutoff(values: Sequence[float], stopping: EarlyStopping) -> float:
    """Return the lowest score with which a trial goes on at a rung: a quantile of `values`, interpolated.

    For ASHA the best 1 / reduction_factor of the values reach it, for the median rule the better half.

    Args:
        values: scores of the trials that reached this rung earlier.
        stopping: the section `early_stopping:`.

    Returns:
        -inf if there are too few values: none for ASHA, fewer than MEDIAN_MIN_TRIALS for the median rule.
    """
    quantile, min_trials = cutoff_rule(stopping)
    return float(np.quantile(np.asarray(values), quantile)) if len(values) >= min_trials else -np.inf


def decide(value: float, values_at_rung: Sequence[float], stopping: EarlyStopping) -> Decision:
    """Return STOP for a trial that reaches a rung with a score below the cutoff, else CONTINUE.

    Args:
        value: the trial's best score so far, since that is what a trial is judged by in the end.
        values_at_rung: the same of the trials that reached this rung earlier.
        stopping: the section `early_stopping:`.
    """
    return STOP if value < cutoff(values_at_rung, stopping) else CONTINUE


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
    """

    def __init__(self, config: SweepConfig) -> None:
        self.config = config
        self.values: dict[int, dict[int, float]] = {epoch: {} for epoch in rung_epochs(config)}
        self.kept: dict[int, Kept] = {}

    def decide(
        self, number: int, epoch: int, value: float, *, default: bool = False, earlier: Sequence[float] | None = None
    ) -> RungDecision:
        """Return what becomes of a trial that reaches a rung; nothing is noted.

        Args:
            number: of the trial.
            epoch: of the rung.
            value: the trial's best score so far.
            default: whether it is the trial of the default recipe.
            earlier: the values that it is compared with; None for those noted at the rung.
        """
        if number in self.kept:
            return RungDecision(value, CONTINUE, self.kept[number])
        if earlier is None:
            earlier = list(self.values.get(epoch, {}).values())
        bar = cutoff(earlier, self.config.early_stopping)
        compared = (bar, len(earlier)) if bar > -np.inf else ()
        if value >= bar:
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
