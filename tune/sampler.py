"""Optuna's samplers, and what is known of a recipe's GPU memory before it runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.search_space import IntersectionSearchSpace
from optuna.trial import FrozenTrial

from trainable.config import TrainConfig
from trainable.options import field_facts
from tune.space import DEFAULTS
from tune.study import StudyConfig

DRAWS = 100  # at most so many before a proposal stands that is known not to fit
OF_MEMORY = {name: fact for name, field in TrainConfig.model_fields.items() if (fact := field_facts(field)["memory"])}


def make_sampler(study: StudyConfig, number: int, common: IntersectionSearchSpace) -> optuna.samplers.BaseSampler:
    """The sampler that proposes trial `number`, of which study.at_random lists what it draws at random.

    common: what all trials have in common, kept from one sampler to the next, since each trial adds little to it.
    """
    seed = int(np.random.SeedSequence([study.study.seed, number]).generate_state(1)[0])
    startup = study.searcher.startup_trials
    samplers = optuna.samplers
    match study.searcher.type:
        case "random":
            return samplers.RandomSampler(seed=seed)
        case "gp":
            return samplers.GPSampler(seed=seed, n_startup_trials=startup)
        case "cmaes":
            return samplers.CmaEsSampler(seed=seed, n_startup_trials=startup)
        case _:
            return FittingTPESampler(study, common, seed=seed, n_startup_trials=startup)


class FittingTPESampler(optuna.samplers.TPESampler):
    """TPE that draws again where a recipe is not likely to fit into GPU memory.

    TPE takes an infeasible trial for a bad one, which says little near the border, where the best recipes often lie.
    But memory grows with some options (`memory="more"` in TrainConfig): what asks for no less in each of them than a
    trial that ran out of memory, of the GPU or of its share of one, runs out of it too.
    """

    def __init__(
        self, study: StudyConfig, common: IntersectionSearchSpace, *, seed: int, n_startup_trials: int
    ) -> None:
        # without group: benchmarks/tpe_group.py
        super().__init__(seed=seed, n_startup_trials=n_startup_trials, multivariate=True)
        self.space, self.common = study.space, common

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """As TPESampler's; of all trials once, then of the new ones."""
        found = self.common.calculate(study)
        return {name: distribution for name, distribution in found.items() if not distribution.single()}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """As TPESampler's; of what is drawn one by one afterwards nothing is known here."""
        ended = study.get_trials(deepcopy=False)
        infeasible = [each.params for each in ended if any(value > 0 for value in each.constraints.values())]
        too_large = [DEFAULTS | self.recipe(each) for each in infeasible]  # an inactive option is at its default
        for _ in range(DRAWS):
            params = super().sample_relative(study, trial, search_space)
            recipe = self.recipe(params)
            if not params or not any(asks_no_less(recipe, than) for than in too_large):
                break
        return params

    def recipe(self, params: dict[str, Any]) -> dict[str, Any]:
        """The options behind params as Optuna stores them, and those that are not searched."""
        return self.space.constants | self.space.values(params)


def asks_no_less(recipe: dict[str, Any], than: dict[str, Any]) -> bool:
    """Whether a recipe asks for as much GPU memory as another; of an option that is not drawn yet nothing is known."""
    for name, fact in OF_MEMORY.items():
        one, other = recipe.get(name), than[name]
        if one is None or (one != other and (fact == "other" or not np.all(np.asarray(one) >= np.asarray(other)))):
            return False
    return True
