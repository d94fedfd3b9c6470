"""Whether the trials of a sweep contradict the priors of its space."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from optuna.trial import FrozenTrial, TrialState

from tune.search.trial_progress import known_scores
from tune.search.tried import recipes_of
from tune.spec.space import Space

MIN_ENDED = 6  # fewer trials say too little


def prior_misleads(space: Space, trials: Sequence[FrozenTrial]) -> bool:
    """Return whether the best third of the ended trials is likelier under an even draw than under the priors.

    Trials that trained to their end come before the stopped ones, and those by the epochs that they were trained for.
    Trials out of GPU memory say nothing of the scores, so they do not count.
    """
    if not space.has_prior:
        return False
    recipes = recipes_of(space, trials)
    scored = [trial for trial in trials if all(value <= 0 for value in trial.constraints.values())]
    ended = [t for t in scored if t.state in (TrialState.COMPLETE, TrialState.PRUNED) and t.number in recipes]
    if len(ended) < MIN_ENDED:
        return False

    def standing(trial: FrozenTrial) -> tuple[bool, float, tuple[float, float]]:
        last = max(known_scores(trial).items(), default=(0.0, 0.0))
        complete = trial.state == TrialState.COMPLETE
        return complete, trial.values[0] if complete else 0.0, last

    best = sorted(ended, key=standing, reverse=True)[: len(ended) // 3]
    return float(np.mean([space.log_prior(recipes[trial.number]) for trial in best])) < 0
