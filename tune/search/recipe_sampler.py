"""Samplers that decide on a whole recipe: even points of the start-up, and the proposals of the model."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from tune.search.expected_ends import ExpectedEnd, ended_curves, expected_ends
from tune.search.memory_limits import out_of_memory, runs_out
from tune.search.model_proposals import propose
from tune.search.surrogate import Surrogate
from tune.search.tried import recipes_of
from tune.search.unit_space import Recipe, UnitSpace
from tune.spec.kinds import encode
from tune.spec.space import Space, key_of
from tune.spec.sweep_config import SweepConfig

EVEN_SHARE = 3  # of so many points of the start-up one is even although the space has a prior
MAX_LEARNED, MAX_BEST = 300, 200  # trials that the model learns from: the time of a proposal grows with their cube
MAX_REDRAWS = 100  # of a point of the start-up, before one is kept that is known not to fit into GPU memory
EXPLORED = 3  # of so many proposals of `bayes` one is a point of the start-up's sequence


def learned_ends(ends: Sequence[ExpectedEnd]) -> list[ExpectedEnd]:
    """Return MAX_LEARNED at most of these, best first: of more the MAX_BEST best, and others evenly down to the worst.

    Without the worst it would be forgotten where they are, and tried again.
    """
    ranked = sorted(ends, key=lambda end: (-end.score, end.number))
    if len(ranked) <= MAX_LEARNED:
        return ranked
    others = np.linspace(MAX_BEST, len(ranked) - 1, MAX_LEARNED - MAX_BEST).astype(int)
    return ranked[:MAX_BEST] + [ranked[index] for index in others.tolist()]


class RecipeSampler(optuna.samplers.BaseSampler):
    """Proposes a recipe that is decided already.

    values: of its active options. misled: whether the trials say that the prior of the space misleads.
    """

    misled = False

    def __init__(self, space: Space, values: dict[str, Any]) -> None:
        self.space, self.values = space, values
        self.parameters = {parameter.name: parameter for parameter in space.parameters}

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
        """Return the option's value, as Optuna's param.

        It is the middle of the range, or of the prior, if the trial has options of another recipe, since a kill came
        between them.
        """
        branch = self.parameters[param_name].branch(self.space.constants | self.space.decode_params(trial.params))
        assert branch is not None  # Space.suggest draws active options only
        if param_name in self.values and branch.kind.contains(self.values[param_name]):
            return encode(self.values[param_name])
        return encode(branch.from_unit(0.5, use_prior=True))


class SobolStartupSampler(RecipeSampler):
    """Proposes trial `number` as a point of a scrambled Sobol' sequence with one coordinate per option.

    The first points, however many, are evenly spread over the space, above all over each option's range: of a few
    random draws often none has, say, a high lr with Adam. docs/sweeps.md says what it gains. In a space with priors the
    points are spread evenly over these, except one of EVEN_SHARE, unless the trials contradict the priors.
    """

    def __init__(
        self,
        space: Space,
        seed: int,
        number: int,
        tried: Collection[str] = (),
        *,
        limits: Sequence[Recipe] = (),
        misled: bool = False,
    ) -> None:
        """Draw the point; another one at random if it is not likely to fit into GPU memory, or has been tried.

        Args:
            space: of the sweep.
            seed: of the sequence.
            number: of the trial.
            tried: recipes, by key_of; they count in a finite space only.
            limits: the recipes that ran out of memory, of out_of_memory. The last of MAX_REDRAWS is kept if none fits.
            misled: whether the trials contradict the prior.
        """
        import torch  # here, because commands that only read a run import this module, and torch takes two seconds

        names = [parameter.name for parameter in space.parameters]
        sequence = torch.quasirandom.SobolEngine(len(names), scramble=True, seed=seed).fast_forward(number)
        point = sequence.draw(1, dtype=torch.float64)[0].tolist()  # float32 would round up to 1
        self.point = dict(zip(names, point, strict=True))
        rng, use_prior = np.random.default_rng([seed, number]), number % EVEN_SHARE != 0 and not misled
        values = UnitSpace(space).recipe(point, use_prior=use_prior)
        for _ in range(MAX_REDRAWS):
            if not runs_out(space, values, limits):
                break
            values = UnitSpace(space).recipe(rng.random(len(names)).tolist(), use_prior=use_prior)
        if key_of(values) in tried and (left := [r for r in space.recipes or () if key_of(r) not in tried]):
            fitting = [recipe for recipe in left if not runs_out(space, recipe, limits)] or left
            values = fitting[int(np.random.default_rng([seed, number]).integers(len(fitting)))]
        super().__init__(space, values)
        self.misled = misled


class ModelSampler(RecipeSampler):
    """Proposes the recipe that promises most by a Gaussian process over all ended trials, see Surrogate."""

    @classmethod
    def of(cls, config: SweepConfig, number: int, trials: Sequence[FrozenTrial]) -> RecipeSampler:
        """Return the sampler of trial `number`.

        It is a point of the start-up's sequence once in EXPLORED, so that the model does not settle on its own
        mistakes, and if too few trials say something of their recipe, or no new candidate fits into memory.
        """
        space, recipes = config.space, recipes_of(config.space, trials)
        tried, limits = set(map(key_of, recipes.values())), out_of_memory(config.space, trials)
        ends = learned_ends(expected_ends(ended_curves([trial for trial in trials if trial.number in recipes])))
        surrogate = Surrogate(space).fit([recipes[end.number] for end in ends], ends)
        if number % EXPLORED and surrogate.ready:
            running = [recipes[t.number] for t in trials if t.state == TrialState.RUNNING and t.number in recipes]
            for values in propose(surrogate, running, np.random.default_rng([config.seed, number])):
                if key_of(values) not in tried and not runs_out(space, values, limits):
                    sampler = cls(space, values)
                    sampler.misled = surrogate.misled
                    return sampler
        return SobolStartupSampler(space, config.seed, number, tried, limits=limits, misled=surrogate.misled)
