"""Which trial is the winner: the order of a run's trials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING

from trainable.training.epoch_result import EndReason
from tune.spec.sweep_config import SweepConfig

if TYPE_CHECKING:
    from tune.run.results import TrialResult

LATE_SHARE = 4  # the last quarter of a training's validations


def late_validations(config: SweepConfig) -> int:
    """Return how many of a whole training's last validations `study.rank_by: late` looks at, at least one."""
    return max(1, round(config.fixed("epochs") // config.fixed("val_freq") / LATE_SHARE))


def late_score(scores: Mapping[int, float], config: SweepConfig) -> float | None:
    """Return the mean of a trial's last late_validations; None if no score is known.

    scores: of its validated epochs, by epoch.
    """
    last = [scores[epoch] for epoch in sorted(scores)][-late_validations(config) :]
    return fmean(last) if last else None


def rank(trials: Sequence[TrialResult], config: SweepConfig) -> list[TrialResult]:
    """Return the trials with a score, best first: those that trained to their end, then the rest.

    The first are in the order of `study.rank_by`, the rest by falling score. The rest was stopped, failed or still
    runs: scores are of fewer epochs, so the groups are not compared with each other. Trials out of memory and those
    outside a changed space are left out.
    """

    def key(trial: TrialResult) -> tuple[bool, float, float, int]:
        score = trial.score or 0.0
        ranked_by = trial.late_score if trial.finished and config.objective.rank_by == "late" else None
        return not trial.finished, -(score if ranked_by is None else ranked_by), -score, trial.number

    counted = [t for t in trials if t.score is not None and not t.outside_space]
    return sorted((t for t in counted if t.end_reason != EndReason.OUT_OF_MEMORY), key=key)
