"""Optuna's samplers, and what is known of a recipe's GPU memory before it runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.search_space import IntersectionSearchSpace
from optuna.trial import FrozenTrial, TrialState

from trainable.core.options import OPTIONS
from tune.spec.kinds import encode
from tune.spec.space import DEFAULTS, Space, encode_values
from tune.spec.sweep_config import SweepConfig

MAX_REDRAWS = 100  # by TPE, then as many at random, before a proposal is kept that is known not to fit
MEMORY_OPTIONS = {name: info.memory for name, info in OPTIONS.items() if info.memory}


def make_sampler(
    config: SweepConfig, number: int, search_space: IntersectionSearchSpace, trials: Sequence[FrozenTrial]
) -> optuna.samplers.BaseSampler:
    """Return the sampler that proposes trial `number`; config.unmodelled_options lists what it draws at random.

    Args:
        number: of the trial; the sampler is seeded from config.seed and this.
        search_space: of the study, the same object for all its samplers: it keeps which params all trials have, so that
            each trial is read once.
        trials: of the study so far. While the type of searcher, unless random, can learn from fewer than startup_trials
            of them, the sampler is SobolStartupSampler.
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
            return MemoryAwareTPESampler(config, search_space, seed=seed, n_startup_trials=startup)


def first_recipes(config: SweepConfig, count: int) -> list[dict[str, Any]]:
    """Return the searched options' values of a sweep's first trials: those of config.given_recipes, then drawn ones.

    They are those that do not depend on scores: all of a random searcher or of a space that the trials exhaust, else
    startup_trials and at least config.given_recipes. There are at most `count` and at most budget.trials.
    """
    known = config.budget.trials if config.searcher.type == "random" else config.searcher.startup_trials
    study = optuna.create_study(direction="maximize")
    given = [values for _, values in config.given_recipes]
    for recipe in given:
        study.enqueue_trial(encode_values(recipe))
    recipes: list[dict[str, Any]] = []
    finite = config.space.untried(config.budget.trials, ()) is not None
    known = config.trials_left(0, ()) if finite else max(known, len(given))
    for number in range(min(count, known, config.budget.trials)):
        if number >= len(given) and (values := next_untried(config, number, recipes)):
            study.enqueue_trial(encode_values(values))
        study.sampler = make_sampler(config, number, IntersectionSearchSpace(), [])
        recipes.append(config.space.suggest(study.ask()))
    return recipes


def next_untried(config: SweepConfig, number: int, tried: Iterable[dict[str, Any]]) -> dict[str, Any] | None:
    """Return a recipe that trial `number` is to try, of those left of a space that the sweep's trials exhaust.

    Drawn at random from config.seed and number; None if the space has more recipes than study.trials, or none is left.
    """
    untried = config.space.untried(config.budget.trials, tried)
    if not untried:
        return None
    return untried[int(np.random.default_rng([config.seed, number]).integers(len(untried)))]


class SobolStartupSampler(optuna.samplers.BaseSampler):
    """Draws trial `number` as a point of a scrambled Sobol' sequence with one coordinate per option.

    The first points, however many, are evenly spread over the space, above all over each option's range: of a few
    random draws often none has, say, a high lr with Adam. docs/sweeps.md says what it gains.
    """

    def __init__(self, space: Space, seed: int, number: int) -> None:
        import torch  # here, because commands that only read a run import this module, and torch takes two seconds

        self.space, self.parameters = space, {parameter.name: parameter for parameter in space.parameters}
        sequence = torch.quasirandom.SobolEngine(len(self.parameters), scramble=True, seed=seed).fast_forward(number)
        point = sequence.draw(1, dtype=torch.float64)[0].tolist()  # float32 would round up to 1
        self.point = dict(zip(self.parameters, point, strict=True))

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return nothing: each option is drawn by sample_independent."""
        return {}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return nothing: each option is drawn by sample_independent."""
        return {}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Return this option's coordinate of the point, as Optuna's param."""
        values = self.space.constants | self.space.decode_params(trial.params)
        branch = self.parameters[param_name].branch(values)
        assert branch is not None, f"{param_name} is drawn, although none of its ranges applies"
        return encode(branch.from_unit(self.point[param_name], use_prior=False))


class MemoryAwareTPESampler(optuna.samplers.TPESampler):
    """TPE that draws again if a recipe is not likely to fit into GPU memory.

    TPE treats an infeasible trial as a bad one, which says little near the limit, where the best recipes often are.
    But memory grows with some options (`memory="more"` in TrainConfig): a proposal will run out too if, by
    dominates_in_memory, it needs at least as much as a trial that ran out of memory, of the GPU or of its share of one.
    """

    def __init__(
        self, config: SweepConfig, search_space: IntersectionSearchSpace, *, seed: int, n_startup_trials: int
    ) -> None:
        # Without `group`: benchmarks/tpe_group.py shows that it finds less.
        super().__init__(seed=seed, n_startup_trials=n_startup_trials, multivariate=True)
        self.space, self.search_space = config.space, search_space
        self.draw = optuna.samplers.RandomSampler(seed=seed).sample_independent

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return the params that all complete and pruned trials have and that can vary, as TPESampler does.

        What it learns of a trial is kept in `search_space` for the samplers of later trials, so that it need not be
        read again.
        """
        shared = self.search_space.calculate(study)
        return {name: distribution for name, distribution in shared.items() if not distribution.single()}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Draw as TPESampler does, again while the recipe is known not to fit into GPU memory.

        MAX_REDRAWS draws are TPE's, then as many are random; the last one is returned even if it does not fit. Options
        that sample_independent draws later have no value yet.
        """
        trials = study.get_trials(deepcopy=False)
        infeasible = [frozen.params for frozen in trials if any(value > 0 for value in frozen.constraints.values())]
        too_large = [DEFAULTS | self.recipe(params) for params in infeasible]  # an inactive option is at its default
        params: dict[str, Any] = {}
        for index in range(2 * MAX_REDRAWS):
            if index < MAX_REDRAWS:
                params = super().sample_relative(study, trial, search_space)
            else:  # TPE's own draws are close to each other
                params = {name: self.draw(study, trial, name, search_space[name]) for name in search_space}
            recipe = self.recipe(params)
            if not params or not any(dominates_in_memory(recipe, other) for other in too_large):
                break
        return params

    def recipe(self, params: dict[str, Any]) -> dict[str, Any]:
        """Return the option values that Optuna's params encode, and those that are not searched."""
        return self.space.constants | self.space.decode_params(params)


def dominates_in_memory(recipe: dict[str, Any], other: dict[str, Any]) -> bool:
    """Return whether a recipe is known to need at least as much GPU memory as `other`, which has all options.

    It is if each option with memory="more" in TrainConfig is at least as large, each item of a list too, and each with
    memory="other" is equal. The result is False if the recipe lacks a value of one of them, as it is not drawn yet.
    """
    for name, effect in MEMORY_OPTIONS.items():
        value, limit = recipe.get(name), other[name]
        if value is None or (
            value != limit and (effect == "other" or not np.all(np.asarray(value) >= np.asarray(limit)))
        ):
            return False
    return True
