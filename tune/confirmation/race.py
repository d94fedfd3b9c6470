"""Which challengers of the default recipe are trained on, by the scores so far.

As SMAC's intensifier (Lindauer et al. 2022, https://arxiv.org/abs/2109.09831): in each round every recipe gets one more
training, and a challenger that is unlikely to win is dropped. The race ends when the leading challenger is shown to be
better than the default. A race is a pure function of the scores, so a race that goes on after a kill needs no state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainable.evaluation.comparison import Comparison, compare_recipes

DEFAULT = "default"
# Per seed, consecutive from index 0, and per fold: (cases,) scores of the training.
ArmScores = Sequence[Sequence[NDArray[np.float64]]]

# One-sided rates at which "better" may err in a race without a difference, over all challengers: 4.5 % in all.
LAST_LEVEL = 0.025  # when all seeds are trained
EARLY_LEVEL = 0.02  # of all looks before that, which share it equally
FUTILE = 0.10  # a challenger less likely to win than this is dropped
FUTILE_DRAWS = 2_000  # enough to tell 10 %, and there are many such comparisons

CLEAR = "the verdict is clear"
ALL_TRAINED = "all seeds are trained"
NONE_LEFT = "no challenger is left"


@dataclass(frozen=True)
class Race:
    """What the scores so far decide.

    Attributes:
        round: number of trainings per recipe by which the next decision is made, or the last one was.
        alive: challengers still in the race, best first.
        dropped: reason by name of each challenger that is not, with the round.
        wanted: (recipe, index of its seed) of the trainings that the decision of this round still needs.
        ahead: the same of those that later rounds would need, the most likely first: for GPUs that would idle.
        ended: why the race has ended; "" while it goes on.
        judged: number of trainings by name by which each recipe was judged last, 0 if it was not yet or has failed.
        confidence: of the two-sided interval by which the leading challenger was judged last.
    """

    round: int
    alive: tuple[str, ...]
    dropped: dict[str, str]
    wanted: tuple[tuple[str, int], ...]
    ahead: tuple[tuple[str, int], ...]
    ended: str
    judged: dict[str, int]
    confidence: float


def race(
    scores: Mapping[str, ArmScores],
    challengers: Sequence[str],
    seeds: int,
    failed: Mapping[str, str] | None = None,
    *,
    draws: int = 10_000,
) -> Race:
    """Replay a race from its start.

    Args:
        scores: by recipe, the default's among them; the seeds of a recipe that are there, without gaps.
        challengers: names of the recipes that compete with the default.
        seeds: the most trainings per recipe (times the folds, if there are folds).
        failed: reason by name of each recipe of which a training failed or diverged; it does not take part.
        draws: of each comparison with the default.
    """
    failed = failed or {}
    dropped = {name: f"failed: {failed[name]}" for name in challengers if name in failed}
    alive = tuple(name for name in challengers if name not in failed)
    judged = dict.fromkeys((DEFAULT, *challengers), 0)
    confidence = confidence_of(len(challengers), 0, seeds)
    if DEFAULT in failed:
        return Race(0, alive, dropped, (), (), f"the default failed: {failed[DEFAULT]}", judged, confidence)
    for number in range(1, seeds + 1):
        if not alive:
            confidence = confidence_of(len(challengers), seeds, seeds)  # nobody can be shown to be better any more
            return Race(number - 1, (), dropped, (), (), NONE_LEFT, judged, confidence)
        alive = _best_first(scores, alive, number)
        if wanted := _missing(scores, alive, range(number)):
            ahead = _missing(scores, alive, range(number, seeds))
            return Race(number, alive, dropped, wanted, ahead, "", judged, confidence)
        confidence = confidence_of(len(challengers), number, seeds)
        judged |= dict.fromkeys((DEFAULT, *alive), number)
        if compare_arms(scores, alive[0], DEFAULT, number, confidence, draws).verdict == "better":
            return Race(number, alive, dropped, (), (), CLEAR, judged, confidence)
        if number < seeds:
            now_dropped = _futile(scores, alive, number, min(draws, FUTILE_DRAWS))
            dropped |= now_dropped
            alive = tuple(name for name in alive if name not in now_dropped)
    return Race(seeds, alive, dropped, (), (), ALL_TRAINED, judged, confidence)


def confidence_of(challengers: int, number: int, seeds: int) -> float:
    """Return the confidence of the two-sided interval that must exclude 0 for the verdict "better".

    Each challenger and each look is another chance to err, so they share the rate (Bonferroni); most of it is kept for
    the last look, which has the most trainings.

    Args:
        challengers: number of recipes that entered the race.
        number: of the round, which is the number of trainings per recipe.
        seeds: number of the last round.
    """
    level = LAST_LEVEL if number == seeds else EARLY_LEVEL / max(seeds - 1, 1)
    return 1 - 2 * level / max(challengers, 1)


def compare_arms(
    scores: Mapping[str, ArmScores], first: str, second: str, trainings: int, confidence: float, draws: int = 10_000
) -> Comparison:
    """Compare two recipes of a race by the first `trainings` trainings of each."""
    folds = (_folds(scores[name][:trainings]) for name in (first, second))
    return compare_recipes(*folds, confidence=confidence, draws=draws)


def _folds(arm: ArmScores) -> list[NDArray[np.float64]]:
    """Return an arm's scores per fold (trainings, cases)."""
    return [np.stack(fold) for fold in zip(*arm, strict=True)]


def mean_score(arm: ArmScores) -> float:
    """Return the mean of a recipe's scores, over its trainings and over cases."""
    return float(np.mean([np.concatenate(list(seed)).mean() for seed in arm]))


def _best_first(scores: Mapping[str, ArmScores], names: Sequence[str], number: int) -> tuple[str, ...]:
    """Return the names by falling mean over the first trainings; those without one stay in order, at the end."""
    known = {name: mean_score(scores[name][:number]) for name in names if scores.get(name)}
    return tuple(sorted(names, key=lambda name: -known.get(name, -np.inf)))


def _missing(scores: Mapping[str, ArmScores], alive: Sequence[str], seeds: range) -> tuple[tuple[str, int], ...]:
    """Return (recipe, index of its seed) of the default and these challengers that have no scores, seed by seed."""
    return tuple((name, index) for index in seeds for name in (DEFAULT, *alive) if len(scores.get(name, ())) <= index)


def _futile(scores: Mapping[str, ArmScores], alive: Sequence[str], number: int, draws: int) -> dict[str, str]:
    """Return the reason by name of each challenger that is unlikely to beat the default, or the leading challenger."""
    reasons = {}
    leader = ""
    means = {name: mean_score(scores[name][:number]) for name in (DEFAULT, *alive)}
    for name in alive:  # best first
        for rival in (DEFAULT, leader) if leader else (DEFAULT,):
            if means[name] >= means[rival]:
                continue  # at least an even chance
            probability = compare_arms(scores, name, rival, number, 0.95, draws).probability
            if probability < FUTILE:  # never if it is NaN
                reasons[name] = f"round {number}: {probability:.1%} likely to be better than {_called(rival)}"
                break
        else:
            leader = leader or name
    return reasons


def _called(name: str) -> str:
    """Return how a recipe is named in a sentence."""
    return "the default" if name == DEFAULT else name
