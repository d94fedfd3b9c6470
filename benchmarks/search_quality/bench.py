"""What a benchmark of the search is: a space, and what a training of each of its recipes scores, in microseconds."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tune.spec.kinds import Choice, LogUniform, QUniform, RandInt, Uniform, all_values
from tune.spec.parameter import Branch, Parameter
from tune.spec.prior import NumberPrior, Prior, WeightsPrior
from tune.spec.sections import EarlyStopping, Objective, Searcher
from tune.spec.space import Space
from tune.spec.sweep_config import SweepConfig
from tune.spec.sweep_file import load_sweep_config

DATA = Path(__file__).parents[1] / "data"
ETA = 3
Recipe = dict[str, Any]  # values of the searched options that are active


class Bench:
    """A space and the curve of each of its recipes.

    was: voxtune's config as it was in November 2026. epochs, every: of a training, and between validations. trained:
    cases trained on, by which the steps of a training are known; 0 if it is no U-Net's. patience: validations without
    gain that end it. noise, seed_noise: standard deviations of one validation and of one training.
    unit: by which a regret is multiplied for the table. default, start: recipes that are tried first. beliefs: of an
    option, what a user believes of its best value: (value, confidence), or one weight per choice. best: noise-free
    final score of the best recipe.
    """

    was: SweepConfig
    epochs: int
    every = 1
    trained = 0
    patience = 0
    noise = 0.0
    seed_noise = 0.0
    unit = 100.0
    default: Recipe
    start: Recipe
    beliefs: dict[str, Any]
    best: float

    @property
    def space(self) -> Space:
        """The space that voxtune as it was and the peers search."""
        return self.was.space

    def curve(self, values: Recipe) -> NDArray[np.float64]:
        """Return the noise-free scores at each validation."""
        raise NotImplementedError

    def final(self, values: Recipe) -> float:
        """Return what the recipe is worth: its noise-free score at the end."""
        return float(self.curve(values)[-1])

    def scores(self, values: Recipe, seed: int, number: int) -> NDArray[np.float64]:
        """Return the scores of one training at each validation."""
        rng, curve = np.random.default_rng([seed, number, 5]), self.curve(values)
        return curve + self.seed_noise * rng.normal() + self.noise * rng.normal(size=len(curve))

    def shipped(self) -> SweepConfig:
        """Return the config that voxtune ships, with what it knows beforehand."""
        return believing(self.was, self.beliefs)

    def given(self, config: SweepConfig) -> list[Recipe]:
        """Return the recipes that a sweep of shipped() tries first."""
        return [self.default, self.start]


def draw(space: Space, rng: np.random.Generator) -> Recipe:
    """Return a recipe at random."""
    return complete(space, {}, rng)


def complete(space: Space, values: Recipe, rng: np.random.Generator) -> Recipe:
    """Return these values without those of inactive options; what is active and missing is drawn at random."""
    found, constants = Recipe(), space.constants
    for parameter in space.parameters:
        if parameter.active(constants | found):
            found[parameter.name] = values.get(parameter.name, parameter.kind.from_unit(rng.random()))
    return found


def maximise(
    space: Space,
    final: Callable[[Recipe], float],
    seed: int,
    *,
    known: tuple[Recipe, ...] = (),
    draws: int = 1500,
    starts: int = 6,
) -> Recipe:
    """Return the best recipe: the best of many draws and of the known ones, improved option by option."""
    rng = np.random.default_rng([seed, 11])
    pool = sorted((draw(space, rng) for _ in range(draws)), key=final)[-starts:]
    pool += [complete(space, recipe, rng) for recipe in known]
    found = []
    for values in pool:
        score, width = final(values), 1.0
        for _ in range(7):
            for parameter in space.parameters:
                for value in _nearby(parameter, values, width):
                    other = complete(space, {**values, parameter.name: value}, rng)
                    if (reached := final(other)) > score:
                        values, score = other, reached
            width *= 0.6
        found.append((score, len(found), values))
    return max(found)[2]


def _nearby(parameter: Parameter, values: Recipe, width: float) -> Iterator[Any]:
    """Yield values of an option to try: all of a few, else some around the present one."""
    kind = parameter.kind
    if not kind.continuous:
        yield from all_values(kind)
        return
    assert isinstance(kind, Uniform)
    centre = unit_of(kind, values[parameter.name]) if parameter.name in values else 0.5
    for u in np.clip(centre + width * np.linspace(-0.5, 0.5, 9), 0, 1 - 1e-9):
        yield kind.from_unit(float(u))


def unit_of(kind: Uniform, value: float) -> float:
    """Return where a value lies in a continuous range, from 0 to 1."""
    if isinstance(kind, LogUniform):
        return math.log(value / kind.low) / math.log(kind.high / kind.low)
    return (value - kind.low) / (kind.high - kind.low)


@functools.cache
def brats_as_it_was() -> SweepConfig:
    """Return search_spaces/brats.yaml of November 2026."""
    return load_sweep_config(DATA / "brats_2026_11.yaml")


def foreign(ranges: dict[str, Choice | Uniform | LogUniform | RandInt | QUniform], epochs: int) -> SweepConfig:
    """Return voxtune's config as it was for a space that is no U-Net's: validated each epoch, rungs from the first."""
    parameters = tuple(make_parameter(name, kind) for name, kind in ranges.items())
    return SweepConfig(
        objective=Objective(rank_by="best"),
        early_stopping=EarlyStopping(type="asha", grace_period=1, reduction_factor=ETA, min_trials=1, margin=0.0),
        searcher=Searcher(type="tpe", startup_trials=brats_as_it_was().searcher.startup_trials),
        space=Space(parameters, {"epochs": epochs, "val_freq": 1}),
    )


def make_parameter(name: str, kind: Any, prior: Prior | None = None) -> Parameter:
    """Return an option that is always searched."""
    return Parameter(name, (Branch(kind, {}, prior),))


def believing(was: SweepConfig, beliefs: dict[str, Any]) -> SweepConfig:
    """Return a foreign config with priors, searched and stopped as brats.yaml is now."""
    now = load_sweep_config("brats")
    parameters = []
    for parameter in was.space.parameters:
        belief = beliefs.get(parameter.name)
        prior: Prior | None = WeightsPrior(tuple(map(float, belief))) if isinstance(belief, list) else None
        if isinstance(belief, tuple):
            prior = NumberPrior(*belief)
        parameters.append(make_parameter(parameter.name, parameter.kind, prior))
    return was.model_copy(
        update={
            "space": Space(tuple(parameters), was.space.fixed),
            "searcher": now.searcher,
            "budget": now.budget,
            "objective": now.objective,
            "early_stopping": scaled(now, was),
        }
    )


def scaled(now: SweepConfig, was: SweepConfig) -> EarlyStopping:
    """Return the early stopping of one config with its first rung where it is in the training of another."""
    share = now.early_stopping.grace_period / now.fixed("epochs")
    every = was.fixed("val_freq")
    grace = max(1, round(share * was.fixed("epochs") / every)) * every
    return now.early_stopping.model_copy(update={"grace_period": grace})


def given_by_yaml(config: SweepConfig) -> list[Recipe]:
    """Return the recipes that a sweep of this config tries first: the default one, and those of `start:`."""
    return [values for _, values in config.given_recipes]
