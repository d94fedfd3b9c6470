"""TPE, Optuna's, with what voxtune knows of GPU memory and of the best recipes before any trial."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution
from optuna.search_space import IntersectionSearchSpace
from optuna.trial import FixedTrial, FrozenTrial

from tune.search.memory_limits import out_of_memory, runs_out
from tune.search.prior_guard import prior_misleads
from tune.search.tried import recipes_of
from tune.spec.kinds import Kind, encode
from tune.spec.space import key_of
from tune.spec.sweep_config import SweepConfig

Draw = Callable[[optuna.Study, FrozenTrial, str, BaseDistribution], Any]
MAX_REDRAWS = 100  # by TPE, then as many at random, before a proposal is kept that is known not to fit
PRIOR_POWER = 10.0  # by the number of ended trials: the power of the prior in the acquisition


def tpe_sampler(
    config: SweepConfig, search_space: IntersectionSearchSpace, trials: Sequence[FrozenTrial], seed: int
) -> MemoryAwareTPESampler:
    """Return the sampler for these trials: weighted by the prior of the space, unless it has none or they deny it."""
    ended = [trial for trial in trials if trial.state.is_finished()]
    startup = config.searcher.startup_trials
    if not config.space.has_prior:
        return MemoryAwareTPESampler(config, search_space, seed=seed, n_startup_trials=startup)
    power = 0.0 if prior_misleads(config.space, trials) else PRIOR_POWER / max(1, len(ended))
    return PriorTPESampler(config, search_space, power, seed=seed, n_startup_trials=startup)


def distribution_of(kind: Kind, name: str) -> BaseDistribution:
    """Return what Optuna draws an option from that has this range."""
    trial = FixedTrial({name: encode(kind.from_unit(0.5))})
    kind.suggest(name, trial)
    return trial.distributions[name]


class MemoryAwareTPESampler(optuna.samplers.TPESampler):
    """TPE that draws again if a recipe is not likely to fit into GPU memory, or has been tried.

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
        self.drawn: dict[str, tuple[BaseDistribution, Any]] = {}  # of the proposed recipe, one by one

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
        """Draw as TPESampler does, again while the recipe has been tried or is known not to fit into GPU memory.

        MAX_REDRAWS draws are TPE's, then as many are random; the last one is returned even if it does not fit. For each
        of them the other options, as those with `when`, are drawn too; sample_independent returns those of the last.
        """
        trials = study.get_trials(deepcopy=False)
        too_large, tried = out_of_memory(self.space, trials), set(map(key_of, recipes_of(self.space, trials).values()))
        params: dict[str, Any] = {}
        for index in range(2 * MAX_REDRAWS):
            if index < MAX_REDRAWS:
                params = super().sample_relative(study, trial, search_space)
                values = self.complete(study, trial, params, super().sample_independent)
            else:  # TPE's own draws are close to each other
                params = {name: self.draw(study, trial, name, search_space[name]) for name in search_space}
                values = self.complete(study, trial, params, self.draw)
            if key_of(values) not in tried and not runs_out(self.space, values, too_large):
                break
        return params

    def complete(self, study: optuna.Study, trial: FrozenTrial, params: dict[str, Any], draw: Draw) -> dict[str, Any]:
        """Return the recipe of jointly drawn params, with the other options drawn one by one as Space.suggest does.

        A trial that a kill interrupted keeps what it has.
        """
        space, known = self.space, copy.copy(trial)
        self.drawn = {}
        for parameter in space.parameters:
            name, branch = parameter.name, parameter.branch(space.constants | space.decode_params(known.params))
            if branch is None or name in known.params:
                continue
            param, distribution = encode(branch.kind.from_unit(0.5)), distribution_of(branch.kind, name)
            if name in params and branch.kind.contains(parameter.kind.decode(params[name])):
                param = params[name]
            elif not distribution.single():
                param = draw(study, known, name, distribution)
                self.drawn[name] = distribution, param
            known.params = known.params | {name: param}
        return space.decode_params(known.params)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Return what `complete` has drawn for the recipe, or draw."""
        distribution, param = self.drawn.get(param_name, (None, None))
        if distribution == param_distribution:
            return param
        return super().sample_independent(study, trial, param_name, param_distribution)


class PriorTPESampler(MemoryAwareTPESampler):
    """TPE whose acquisition is weighted by the prior of the space, as in piBO (https://arxiv.org/abs/2204.11051).

    power: of the prior; 0 if the trials so far say that it misleads.
    """

    def __init__(
        self,
        config: SweepConfig,
        search_space: IntersectionSearchSpace,
        power: float,
        *,
        seed: int,
        n_startup_trials: int,
    ) -> None:
        super().__init__(config, search_space, seed=seed, n_startup_trials=n_startup_trials)
        self.power, self.misled = power, power == 0
        self.drawn_from: dict[str, BaseDistribution] = {}
        self.known: dict[str, Any] = {}

    def _sample(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution], *args: Any
    ) -> dict[str, Any]:
        """Remember what the samples of _compute_acquisition_func are of, and the options that are drawn already."""
        self.drawn_from, self.known = search_space, self.space.decode_params(trial.params)
        return super()._sample(study, trial, search_space, *args)

    def _compute_acquisition_func(self, samples: Any, mpe_below: Any, mpe_above: Any) -> NDArray[np.float64]:
        """Add the log prior of the options that are drawn together, or of one with `when`, drawn after those."""
        found: NDArray[np.float64] = super()._compute_acquisition_func(samples, mpe_below, mpe_above)
        if not self.power:
            return found
        for index in range(len(found)):
            params = {
                name: distribution.to_external_repr(samples[name][index])
                for name, distribution in self.drawn_from.items()
            }
            found[index] += self.power * self.space.log_prior(self.known | self.space.decode_params(params))
        return found
