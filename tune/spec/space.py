"""The search space: which options are searched, in which ranges and under which conditions."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.trial import BaseTrial, FixedTrial

from trainable.core.config import TrainConfig
from trainable.core.errors import InputError
from trainable.core.options import option_names, to_dict
from tune.spec.kinds import Kind, all_values, encode
from tune.spec.parameter import Parameter

MAX_RECIPES = 10_000  # of a space that is counted; with more it is treated as one that trials do not exhaust
KeyPath = tuple[str | int, ...]
Problem = tuple[KeyPath, str]  # the path of a key in the YAML, and a sentence about it

DEFAULTS = to_dict(TrainConfig())


def key_text(path: KeyPath) -> str:
    """Return the path of a key as messages have it: space.lr[1].when."""
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path).removeprefix(".")


class ConfigErrors(InputError):
    """All that is wrong with the YAML of a sweep, each sentence with the path of its key."""

    def __init__(self, *problems: Problem) -> None:
        self.problems = problems
        super().__init__("\n".join(sentence for _, sentence in problems))


def key_of(values: dict[str, Any]) -> str:
    """Return a recipe as a text that is the same for equal ones."""
    return json.dumps(values, sort_keys=True)


def encode_values(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values of options, by name, as Optuna's params."""
    return {name: encode(value) for name, value in values.items()}


@dataclass(frozen=True)
class Space:
    """The searched options, each after those that its conditions name, and the options of `train:` as plain values."""

    parameters: tuple[Parameter, ...]
    fixed: dict[str, Any]

    @cached_property
    def constants(self) -> dict[str, Any]:
        """The value of each option that is not searched."""
        searched = {parameter.name for parameter in self.parameters}
        return {name: value for name, value in {**DEFAULTS, **self.fixed}.items() if name not in searched}

    def suggest(self, trial: BaseTrial) -> dict[str, Any]:
        """Return a trial's values of the active parameters, drawn by Optuna in the order of `parameters`."""
        constants, values = self.constants, dict[str, Any]()
        for parameter in self.parameters:
            if branch := parameter.branch(constants | values):
                values[parameter.name] = branch.kind.suggest(parameter.name, trial)
        return values

    def decode_params(self, params: dict[str, Any]) -> dict[str, Any]:
        """Return the option values that Optuna's params encode.

        Raises:
            KeyError: for a param of an option that this space does not search.
        """
        return {name: self._by_name[name].kind.decode(param) for name, param in params.items()}

    def lacks_a_value(self, params: dict[str, Any]) -> bool:
        """Return whether Optuna's params lack an option that is active; KeyError as decode_params."""
        constants, values = self.constants, self.decode_params(params)
        return any(p.name not in values and p.branch(constants | values) for p in self.parameters)

    @cached_property
    def _by_name(self) -> dict[str, Parameter]:
        return {parameter.name: parameter for parameter in self.parameters}

    def encode_recipe(self, recipe: dict[str, Any]) -> dict[str, Any]:
        """Return a recipe as Optuna's params of this space.

        recipe: all options as plain values; of those that are not searched, only options with role="recipe" are
        compared with this space.

        Raises:
            ValueError: the recipe is not in this space; the message says why.
        """
        constants, values = self.constants, dict[str, Any]()
        for parameter in self.parameters:
            value = recipe[parameter.name]
            if not (branch := parameter.branch(constants | values)):
                continue
            if not branch.kind.contains(value):
                raise ValueError(f"{parameter.name} is {value}, not of {branch.describe()}")
            values[parameter.name] = value
        for name in option_names(role="recipe"):
            expected = values.get(name, constants.get(name, DEFAULTS[name]))
            if recipe[name] != expected:
                raise ValueError(f"{name} is {recipe[name]}, always {expected} here")
        return encode_values(values)

    def distributions(self, params: dict[str, Any]) -> dict[str, BaseDistribution]:
        """Return what Optuna draws each of these params from.

        Raises:
            ValueError: a param of an active option is missing.
        """
        trial = FixedTrial(params)
        self.suggest(trial)
        return trial.distributions

    def default_values(self) -> dict[str, Any]:
        """Return the searched options of trial 0: each at its default, or at the nearest value of its range.

        A choice that does not contain the default is at its first value. A parameter whose conditions do not hold for
        the values of the others is left out.
        """
        constants, values = self.constants, dict[str, Any]()
        for parameter in self.parameters:
            if branch := parameter.branch(constants | values):
                values[parameter.name] = branch.kind.nearest(DEFAULTS[parameter.name])
        return values

    def default_params(self) -> dict[str, Any]:
        """Return default_values() as Optuna's params, to enqueue as trial 0."""
        return encode_values(self.default_values())

    def describe_defaults(self) -> str:
        """Return "the defaults", or "the defaults, except NAME=VALUE, ..." if default_values() has others."""
        moved = [
            f"{name}={value} (default {DEFAULTS[name]})"
            for name, value in self.default_values().items()
            if value != DEFAULTS[name]
        ]
        return "the defaults" + (f", except {', '.join(moved)}" if moved else "")

    @cached_property
    def recipes(self) -> list[dict[str, Any]] | None:
        """Every recipe of the space, as the values of its active parameters; None if there are over MAX_RECIPES."""
        if any(branch.kind.count > MAX_RECIPES for parameter in self.parameters for branch in parameter.branches):
            return None
        found = [dict[str, Any]()]
        for parameter in self.parameters:
            found = list(islice(self._with_each_value(found, parameter, all_values), MAX_RECIPES + 1))
            if len(found) > MAX_RECIPES:
                return None
        return found

    def _with_each_value(
        self, recipes: Iterable[dict[str, Any]], parameter: Parameter, values_of: Callable[[Kind], list[Any]]
    ) -> Iterator[dict[str, Any]]:
        """Yield recipes with each of the values of one more parameter, and as they are if it is not drawn in them."""
        constants = self.constants
        for recipe in recipes:
            if branch := parameter.branch(constants | recipe):
                yield from (recipe | {parameter.name: value} for value in values_of(branch.kind))
            else:
                yield recipe

    def untried(self, trials: int, tried: Iterable[dict[str, Any]]) -> list[dict[str, Any]] | None:
        """Return the recipes that are left of a space that `trials` trials exhaust; None if it has more recipes.

        tried: the values of the trials so far.
        """
        if self.recipes is None or len(self.recipes) > trials:
            return None
        known = set(map(key_of, tried))
        return [values for values in self.recipes if key_of(values) not in known]

    def combinations(self, names: Iterable[str]) -> list[dict[str, Any]]:
        """Return every combination of the values of these parameters, and of the parameters that their conditions name.

        Of a continuous range only its two ends are combined. A combination lacks the parameters that are inactive in
        it.
        """
        needed = set(names)
        for parameter in reversed(self.parameters):
            needed |= parameter.depends_on if parameter.name in needed else set()
        combined = [dict[str, Any]()]
        for parameter in (p for p in self.parameters if p.name in needed):
            combined = list(self._with_each_value(combined, parameter, lambda kind: kind.grid()))
        return combined

    @property
    def has_prior(self) -> bool:
        """Whether any range has a prior."""
        return any(branch.prior for parameter in self.parameters for branch in parameter.branches)

    def log_prior(self, values: dict[str, Any]) -> float:
        """Return the log of how much likelier the priors draw a recipe than even draws do; 0 if no range has a prior.

        values: of the searched options, without those that are not drawn; one without a value does not count.
        """
        known = self.constants | values
        drawn = [(values[p.name], p.branch(known)) for p in self.parameters if p.name in values]
        return sum((b.prior.log_density(b.kind, value) for value, b in drawn if b and b.prior), 0.0)

    def without_priors(self) -> Space:
        """Return a copy whose ranges have no priors."""
        parameters = [replace(p, branches=tuple(replace(b, prior=None) for b in p.branches)) for p in self.parameters]
        return Space(tuple(parameters), self.fixed)

    def describe(self) -> list[tuple[str, str, str, str, str]]:
        """Return a row of texts per range: the option's name, kind, range, condition and prior."""
        return [
            (p.name, b.kind.key, b.kind.describe(), b.condition(), b.prior.describe() if b.prior else "")
            for p in self.parameters
            for b in p.branches
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return the mapping that read_space turns into this space."""
        return {parameter.name: parameter.to_dict() for parameter in self.parameters}
