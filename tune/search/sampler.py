"""Optuna's samplers, and what is known of a recipe's GPU memory before it runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.search_space import IntersectionSearchSpace
from optuna.trial import FrozenTrial, TrialState

from trainable.core.config import TrainConfig
from trainable.core.options import field_metadata
from tune.spec.space import DEFAULTS, Space, encode
from tune.spec.sweep_config import SweepConfig

MAX_REDRAWS = 100  # by TPE, then as many at random, before a proposal stands that is known not to fit
MEMORY_OPTIONS = {
    name: fact for name, field in TrainConfig.model_fields.items() if (fact := field_metadata(field)["memory"])
}


def make_sampler(
    config: SweepConfig, number: int, common: IntersectionSearchSpace, trials: Sequence[FrozenTrial]
) -> optuna.samplers.BaseSampler:
    """The sampler that proposes trial `number`, of which config.unmodelled_options lists what it draws at random.

    common: what all trials have in common, kept from one sampler to the next, since each trial adds little to it.
    trials: those before; while it can learn from fewer than startup_trials of them, proposals are even.
    """
    seed = int(np.random.SeedSequence([config.seed, number]).generate_state(1)[0])
    kind, startup = config.searcher.type, config.searcher.startup_trials
    samplers = optuna.samplers
    learns_from = (TrialState.COMPLETE, TrialState.PRUNED) if kind == "tpe" else (TrialState.COMPLETE,)
    if kind != "random" and sum(trial.state in learns_from for trial in trials) < startup:
        return SobolStartupSampler(config.space, config.seed, number)
    match kind:
        case "random":
            return samplers.RandomSampler(seed=seed)
        case "gp":
            return samplers.GPSampler(seed=seed, n_startup_trials=startup)
        case "cmaes":
            return samplers.CmaEsSampler(seed=seed, n_startup_trials=startup)
        case _:
            return MemoryAwareTPESampler(config, common, seed=seed, n_startup_trials=startup)


def first_recipes(config: SweepConfig, count: int) -> list[dict[str, Any]]:
    """The options of a sweep's first trials, `count` at most: of those that hang on no score."""
    known = config.budget.trials if config.searcher.type == "random" else max(1, config.searcher.startup_trials)
    drawn = optuna.create_study(direction="maximize")
    drawn.enqueue_trial(config.space.default_params())
    found = []
    for number in range(min(count, known, config.budget.trials)):
        drawn.sampler = make_sampler(config, number, IntersectionSearchSpace(), [])
        found.append(config.space.suggest(drawn.ask()))
    return found


class SobolStartupSampler(optuna.samplers.BaseSampler):
    """A point of a scrambled Sobol' sequence, an option a coordinate.

    The first points, however many, lie evenly in the space, in each option's range above all: of few drawn at random
    often none has, say, a high lr with Adam. docs/sweeps.md has what it gains.
    """

    def __init__(self, space: Space, seed: int, number: int) -> None:
        import torch  # here, for what reads a run imports this module and does without torch's two seconds

        self.parameters = {parameter.name: parameter for parameter in space.parameters}
        sequence = torch.quasirandom.SobolEngine(len(self.parameters), scramble=True, seed=seed).fast_forward(number)
        point = sequence.draw(1, dtype=torch.float64)[0].tolist()  # float32 would round up to 1
        self.point = dict(zip(self.parameters, point, strict=True))

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Nothing: each option is asked for by itself."""
        return {}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Nothing, as above."""
        return {}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """The point's value of this option."""
        return encode(self.parameters[param_name].from_unit(self.point[param_name]))


class MemoryAwareTPESampler(optuna.samplers.TPESampler):
    """TPE that draws again where a recipe is not likely to fit into GPU memory.

    TPE takes an infeasible trial for a bad one, which says little near the border, where the best recipes often lie.
    But memory grows with some options (`memory="more"` in TrainConfig): what asks for no less in each of them than a
    trial that ran out of memory, of the GPU or of its share of one, runs out of it too.
    """

    def __init__(
        self, config: SweepConfig, common: IntersectionSearchSpace, *, seed: int, n_startup_trials: int
    ) -> None:
        # without group: benchmarks/tpe_group.py
        super().__init__(seed=seed, n_startup_trials=n_startup_trials, multivariate=True)
        self.space, self.common = config.space, common
        self.draw = optuna.samplers.RandomSampler(seed=seed).sample_independent

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
        params: dict[str, Any] = {}
        for index in range(2 * MAX_REDRAWS):
            if index < MAX_REDRAWS:
                params = super().sample_relative(study, trial, search_space)
            else:  # TPE's own lie close together
                params = {name: self.draw(study, trial, name, search_space[name]) for name in search_space}
            recipe = self.recipe(params)
            if not params or not any(dominates_in_memory(recipe, than) for than in too_large):
                break
        return params

    def recipe(self, params: dict[str, Any]) -> dict[str, Any]:
        """The options behind params as Optuna stores them, and those that are not searched."""
        return self.space.constants | self.space.decode_params(params)


def dominates_in_memory(recipe: dict[str, Any], than: dict[str, Any]) -> bool:
    """Whether a recipe asks for as much GPU memory as another; of an option that is not drawn yet nothing is known."""
    for name, fact in MEMORY_OPTIONS.items():
        one, other = recipe.get(name), than[name]
        if one is None or (one != other and (fact == "other" or not np.all(np.asarray(one) >= np.asarray(other)))):
            return False
    return True
