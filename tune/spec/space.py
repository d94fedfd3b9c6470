"""The search space as questions to Optuna, conditions included."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.trial import BaseTrial, FixedTrial

from trainable.core.config import TrainConfig
from trainable.core.errors import InputError
from trainable.core.options import fields_of_role, to_dict

KeyPath = tuple[str | int, ...]
Problem = tuple[KeyPath, str]

# Each kind, and what is written behind it.
KINDS = {
    "choice": "a list of one value or more",
    "uniform": "[low, high]",
    "loguniform": "[low, high]",
    "randint": "[low, high], both included",
    "quniform": "[low, high, step]",
}
CONTINUOUS = ("uniform", "loguniform")
DEFAULTS = to_dict(TrainConfig())


class Problems(InputError):
    """All that is wrong with a study, each sentence with the path of its key."""

    def __init__(self, *found: Problem) -> None:
        self.found = found
        super().__init__("\n".join(sentence for _, sentence in found))


@dataclass(frozen=True)
class Parameter:
    """One searched option."""

    name: str
    kind: str
    values: tuple[Any, ...]  # the choices, or (low, high), or (low, high, step)
    when: dict[str, tuple[Any, ...]]  # searched only where each of these options has one of its values

    def active(self, values: dict[str, Any]) -> bool:
        """Whether all conditions hold; one on an option without a value does not."""
        return all(name in values and values[name] in wanted for name, wanted in self.when.items())

    def suggest(self, trial: BaseTrial) -> Any:
        """The value of a trial."""
        if self.kind == "choice":
            return self.decode(trial.suggest_categorical(self.name, [encode(v) for v in self.values]))
        if self.kind == "randint":
            return trial.suggest_int(self.name, *self.values)
        low, high, step = (*self.values, None)[:3]
        return self.decode(trial.suggest_float(self.name, low, high, step=step, log=self.kind == "loguniform"))

    def decode(self, param: Any) -> Any:
        """The option's value behind a param as Optuna stores it."""
        if self.kind == "choice" and isinstance(self.values[0], list):
            return json.loads(param)
        return round(param, 12) if self.kind == "quniform" else param  # 0.1 * 3 is 0.30000000000000004

    def grid(self) -> list[Any]:
        """All values; of a continuous range both ends."""
        if self.kind == "randint":
            return list(range(self.values[0], self.values[1] + 1))
        if self.kind == "quniform":
            low, high, step = self.values
            return [round(low + k * step, 12) for k in range(round((high - low) / step) + 1)]
        return list(self.values)

    def from_unit(self, u: float) -> Any:
        """The value below which this share of the range lies, from 0 up to 1."""
        if self.kind in CONTINUOUS:
            low, high = self.values
            return low * (high / low) ** u if self.kind == "loguniform" else low + u * (high - low)
        every = self.grid()
        return every[int(u * len(every))]

    def contains(self, value: Any) -> bool:
        """Whether a value lies in the range."""
        if self.kind in CONTINUOUS:
            return bool(self.values[0] <= value <= self.values[1])
        return value in self.grid()

    def range_text(self) -> str:
        """The range in words."""
        if self.kind == "choice":
            return ", ".join(str(value) for value in self.values)
        low, high, *step = (f"{value:g}" for value in self.values)
        return f"{low} to {high}" + (f", step {step[0]}" if step else "")

    def when_text(self) -> str:
        """The conditions in words."""
        return " and ".join(f"{name} = {' or '.join(map(str, wanted))}" for name, wanted in self.when.items())


@dataclass(frozen=True)
class Space:
    """The searched options, each after those that its conditions name, and the fixed ones as plain values."""

    parameters: tuple[Parameter, ...]
    fixed: dict[str, Any]

    @property
    def constants(self) -> dict[str, Any]:
        """The value of each option that is not searched."""
        searched = {parameter.name for parameter in self.parameters}
        return {name: value for name, value in {**DEFAULTS, **self.fixed}.items() if name not in searched}

    def suggest(self, trial: BaseTrial) -> dict[str, Any]:
        """The values of a trial's active parameters, asked from Optuna one after the other."""
        constants, values = self.constants, dict[str, Any]()
        for parameter in self.parameters:
            if parameter.active(constants | values):
                values[parameter.name] = parameter.suggest(trial)
        return values

    def decode_params(self, params: dict[str, Any]) -> dict[str, Any]:
        """The options behind a trial's params as Optuna stores them."""
        by_name = {parameter.name: parameter for parameter in self.parameters}
        return {name: by_name[name].decode(param) for name, param in params.items()}

    def encode_recipe(self, recipe: dict[str, Any]) -> dict[str, Any]:
        """A whole recipe, as plain values, as Optuna's params of this space.

        Raises:
            ValueError: where it does not lie in this space, with the reason.
        """
        constants, values = self.constants, dict[str, Any]()
        for parameter in self.parameters:
            value = recipe[parameter.name]
            if not parameter.active(constants | values):
                continue
            if not parameter.contains(value):
                raise ValueError(f"{parameter.name} is {value}, not of {parameter.range_text()}")
            values[parameter.name] = value
        for name in fields_of_role("recipe"):
            expected = values.get(name, constants.get(name, DEFAULTS[name]))
            if recipe[name] != expected:
                raise ValueError(f"{name} is {recipe[name]}, always {expected} here")
        return {name: encode(value) for name, value in values.items()}

    def distributions(self, params: dict[str, Any]) -> dict[str, BaseDistribution]:
        """What Optuna draws each of these params from."""
        trial = FixedTrial(params)
        self.suggest(trial)
        return trial.distributions

    def default_params(self) -> dict[str, Any]:
        """The default recipe as Optuna's params, to enqueue as trial 0; what lies outside the space is left out."""
        constants, values = self.constants, dict[str, Any]()
        for parameter in self.parameters:
            if parameter.active(constants | values) and parameter.contains(DEFAULTS[parameter.name]):
                values[parameter.name] = DEFAULTS[parameter.name]
        return {name: encode(value) for name, value in values.items()}

    def placeholder_values(self) -> dict[str, Any]:
        """A value for each searched option: its default where that lies in the space, else one that does."""
        return {p.name: DEFAULTS[p.name] if p.contains(DEFAULTS[p.name]) else p.grid()[0] for p in self.parameters}

    def combinations(self, names: Iterable[str]) -> list[dict[str, Any]]:
        """Every combination of these parameters and of those that their conditions name."""
        needed = set(names)
        for parameter in reversed(self.parameters):
            needed |= set(parameter.when) if parameter.name in needed else set()
        found = [dict[str, Any]()]
        for parameter in (p for p in self.parameters if p.name in needed):
            added = [{parameter.name: value} for value in parameter.grid()]
            found = [old | new for old in found for new in (added if parameter.active(self.constants | old) else [{}])]
        return found

    def describe(self) -> list[tuple[str, str, str, str]]:
        """Rows of name, kind, range and condition."""
        return [(p.name, p.kind, p.range_text(), p.when_text()) for p in self.parameters]

    def to_dict(self) -> dict[str, Any]:
        """The mapping that read_space turns into this space."""
        return {
            p.name: {p.kind: list(p.values)} | ({"when": {k: list(v) for k, v in p.when.items()}} if p.when else {})
            for p in self.parameters
        }


def encode(value: Any) -> Any:
    """A value as Optuna's param: lists as JSON, because its importances hash params."""
    return json.dumps(value) if isinstance(value, list) else value
