"""Which trial is the winner: the order of a run's trials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Protocol, TypeVar

from trainable.training.epoch_result import EndReason
from tune.search.trial_progress import late_validations
from tune.spec.sweep_config import SweepConfig


class Ranked(Protocol):
    """What the ranking looks at, as TrialResult has it."""

    @property
    def number(self) -> int: ...
    @property
    def score(self) -> float | None: ...
    @property
    def late_score(self) -> float | None: ...
    @property
    def end_reason(self) -> str: ...
    @property
    def outside_space(self) -> str: ...
    @property
    def finished(self) -> bool: ...


AnyTrial = TypeVar("AnyTrial", bound=Ranked)


def late_score(scores: Mapping[int, float], config: SweepConfig) -> float | None:
    """Return the mean of a trial's last late_validations; None if no score is known.

    scores: of its validated epochs, by epoch.
    """
    last = [scores[epoch] for epoch in sorted(scores)][-late_validations(config) :]
    return fmean(last) if last else None


def rank(trials: Sequence[AnyTrial], config: SweepConfig) -> list[AnyTrial]:
    """Return the trials with a score, best first: those that trained to their end, then the rest.

    The first are by falling ranked_score, the rest by falling score. The rest was stopped, failed or still runs: scores
    are of fewer epochs, so the groups are not compared with each other. Trials out of memory and those outside a
    changed space are left out.
    """
    counted = [t for t in trials if t.score is not None and not t.outside_space]
    counted = [trial for trial in counted if trial.end_reason != EndReason.OUT_OF_MEMORY]
    by_late = ranks_by_late(counted, config)

    def key(trial: AnyTrial) -> tuple[bool, float, float, int]:
        return not trial.finished, -ranked_score(trial, by_late=by_late), -(trial.score or 0.0), trial.number

    return sorted(counted, key=key)


def ranks_by_late(trials: Sequence[Ranked], config: SweepConfig) -> bool:
    """Return whether finished ones of these trials are ranked by their late_score: if each has one, else none is."""
    return config.objective.rank_by == "late" and all(t.late_score is not None for t in trials if t.finished)


def ranked_score(trial: Ranked, *, by_late: bool) -> float:
    """Return the score that a trial is ranked by, see ranks_by_late; 0 without one."""
    late = trial.late_score if by_late and trial.finished else None
    return (trial.score or 0.0) if late is None else late
