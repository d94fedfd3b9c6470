"""The search space: from a mapping of YAML to questions that Optuna is asked, conditions included."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.trial import BaseTrial, FixedTrial
from pydantic import ValidationError

from trainable.config import InputError, TrainConfig
from trainable.options import fields_of_role, nearest, plain, problems

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
SUITABLE: dict[Any, tuple[str, ...]] = {int: ("randint", "choice"), float: (*CONTINUOUS, "quniform", "choice")}

DEFAULTS = plain(TrainConfig())
# A depth that every even patch fits and a patch that every depth fits: in place of the one while the other is judged.
STAND_IN: dict[str, Any] = {"depth": 2, "target_shape": [512, 512, 512]}
# Options of the recipe that TrainConfig checks against each other.
FIT_TOGETHER = (("target_shape", "depth"), ("base_loss", "tversky_alpha", "tversky_beta"))


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

    def ask(self, trial: BaseTrial) -> Any:
        """The value of a trial."""
        if self.kind == "choice":
            return self.decode(trial.suggest_categorical(self.name, [encoded(v) for v in self.values]))
        if self.kind == "randint":
            return trial.suggest_int(self.name, *self.values)
        low, high, step = (*self.values, None)[:3]
        return self.decode(trial.suggest_float(self.name, low, high, step=step, log=self.kind == "loguniform"))

    def decode(self, param: Any) -> Any:
        """The option's value behind a param as Optuna stores it."""
        if self.kind == "choice" and isinstance(self.values[0], list):
            return json.loads(param)
        return round(param, 12) if self.kind == "quniform" else param  # 0.1 * 3 is 0.30000000000000004

    def every(self) -> list[Any]:
        """All values; of a continuous range both ends."""
        if self.kind == "randint":
            return list(range(self.values[0], self.values[1] + 1))
        if self.kind == "quniform":
            low, high, step = self.values
            return [round(low + k * step, 12) for k in range(round((high - low) / step) + 1)]
        return list(self.values)

    def holds(self, value: Any) -> bool:
        """Whether a value lies in the range."""
        if self.kind in CONTINUOUS:
            return bool(self.values[0] <= value <= self.values[1])
        return value in self.every()

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
                values[parameter.name] = parameter.ask(trial)
        return values

    def values(self, params: dict[str, Any]) -> dict[str, Any]:
        """The options behind a trial's params as Optuna stores them."""
        by_name = {parameter.name: parameter for parameter in self.parameters}
        return {name: by_name[name].decode(param) for name, param in params.items()}

    def params_of(self, recipe: dict[str, Any]) -> dict[str, Any]:
        """A whole recipe, as plain values, as Optuna's params of this space.

        Raises:
            ValueError: where it does not lie in this space, with the reason.
        """
        constants, values = self.constants, dict[str, Any]()
        for parameter in self.parameters:
            value = recipe[parameter.name]
            if not parameter.active(constants | values):
                continue
            if not parameter.holds(value):
                raise ValueError(f"{parameter.name} is {value}, not of {parameter.range_text()}")
            values[parameter.name] = value
        for name in fields_of_role("recipe"):
            expected = values.get(name, constants.get(name, DEFAULTS[name]))
            if recipe[name] != expected:
                raise ValueError(f"{name} is {recipe[name]}, always {expected} here")
        return {name: encoded(value) for name, value in values.items()}

    def distributions(self, params: dict[str, Any]) -> dict[str, BaseDistribution]:
        """What Optuna draws each of these params from."""
        trial = FixedTrial(params)
        self.suggest(trial)
        return trial.distributions

    def default_params(self) -> dict[str, Any]:
        """The default recipe as Optuna's params, to enqueue as trial 0; what lies outside the space is left out."""
        constants, values = self.constants, dict[str, Any]()
        for parameter in self.parameters:
            if parameter.active(constants | values) and parameter.holds(DEFAULTS[parameter.name]):
                values[parameter.name] = DEFAULTS[parameter.name]
        return {name: encoded(value) for name, value in values.items()}

    def stand_ins(self) -> dict[str, Any]:
        """A value for each searched option: its default where that lies in the space, else one that does."""
        return {p.name: DEFAULTS[p.name] if p.holds(DEFAULTS[p.name]) else p.every()[0] for p in self.parameters}

    def combinations(self, names: Iterable[str]) -> list[dict[str, Any]]:
        """Every combination of these parameters and of those that their conditions name."""
        needed = set(names)
        for parameter in reversed(self.parameters):
            needed |= set(parameter.when) if parameter.name in needed else set()
        found = [dict[str, Any]()]
        for parameter in (p for p in self.parameters if p.name in needed):
            added = [{parameter.name: value} for value in parameter.every()]
            found = [old | new for old in found for new in (added if parameter.active(self.constants | old) else [{}])]
        return found

    def describe(self) -> list[tuple[str, str, str, str]]:
        """Rows of name, kind, range and condition."""
        return [(p.name, p.kind, p.range_text(), p.when_text()) for p in self.parameters]

    def plain(self) -> dict[str, Any]:
        """The mapping that read_space turns into this space."""
        return {
            p.name: {p.kind: list(p.values)} | ({"when": {k: list(v) for k, v in p.when.items()}} if p.when else {})
            for p in self.parameters
        }


def encoded(value: Any) -> Any:
    """A value as Optuna's param: lists as JSON, because its importances hash params."""
    return json.dumps(value) if isinstance(value, list) else value


def read_space(raw: dict[str, Any], fixed: dict[str, Any]) -> Space:
    """The space of the YAML's `space:` mapping, with the plain fixed options of `train:`; or Problems, all of them."""
    found: list[Problem] = []
    parameters: dict[str, Parameter] = {}
    for name, spec in raw.items():
        try:
            parameters[name] = _parameter(name, spec, fixed)
        except Problems as error:
            found += error.found
    constants = {name: value for name, value in {**DEFAULTS, **fixed}.items() if name not in raw}
    found += [problem for p in parameters.values() for problem in _impossible(p, parameters, constants)]
    waiting, ordered = dict(parameters), list[Parameter]()
    while ready := next((p for p in waiting.values() if not waiting.keys() & p.when.keys()), None):
        ordered.append(waiting.pop(ready.name))
    for name in waiting:
        stuck = f"expected an order in which {', '.join(waiting)} can be drawn, they wait for each other"
        found.append((("space", name, "when"), f"space.{name}.when is in a cycle; {stuck}"))
    space = Space(tuple(ordered), fixed)
    if found := found or list(_misfits(space)):
        raise Problems(*found)
    return space


def _parameter(name: str, spec: Any, fixed: dict[str, Any]) -> Parameter:
    """One entry of the space, checked by itself."""
    path: KeyPath = ("space", name)
    if name not in DEFAULTS:
        raise Problems((path, f"space.{name}: unknown option {name!r}{nearest(str(name), list(DEFAULTS))}"))
    if name not in fields_of_role("recipe"):
        why = "is part of the protocol or of how a training runs: it can be fixed under train:, never searched"
        raise Problems((path, f"space.{name} {why}, or scores could not be compared"))
    if name in fixed:
        said = f"train.{name} is {fixed[name]!r}, but space.{name} searches it"
        raise Problems((("train", name), f"{said}; drop one of the two: space.{name}=null or train.{name}=null"))
    kinds = [key for key in spec if key != "when"] if isinstance(spec, dict) else []
    if len(kinds) != 1:
        raise Problems((path, f"space.{name} is {spec!r}; expected one of {', '.join(KINDS)}, and when where needed"))
    [kind] = kinds
    path = (*path, kind)
    if kind not in KINDS:
        close = nearest(str(kind), list(KINDS))
        raise Problems((path, f"space.{name}: unknown kind {kind!r}{close}; expected one of {', '.join(KINDS)}"))
    suitable = SUITABLE.get(TrainConfig.model_fields[name].annotation, ("choice",))
    if kind not in suitable:
        raise Problems((path, f"space.{name}.{kind} does not suit this option; expected {' or '.join(suitable)}"))
    try:
        values = _choices(name, spec[kind]) if kind == "choice" else _range(name, kind, spec[kind])
    except ValueError as error:
        raise Problems((path, f"space.{error}")) from None
    when = spec.get("when", {})
    if not isinstance(when, dict):
        path = (*path[:2], "when")
        raise Problems((path, f"space.{name}.when is {when!r}; expected option: value, or a list of them"))
    return Parameter(name, kind, values, {other: _condition(name, other, wanted) for other, wanted in when.items()})


def judged(name: str, value: Any) -> Any:
    """A value as TrainConfig reads it for this option alone; ValueError in TrainConfig's words."""
    try:
        return plain(TrainConfig.model_validate({**STAND_IN, name: value}))[name]
    except ValidationError as error:
        raise ValueError(next(problems(error))[1]) from None


def _choices(name: str, given: Any) -> tuple[Any, ...]:
    """The choices as TrainConfig reads them."""
    if not isinstance(given, list) or not given:
        raise ValueError(f"{name}.choice is {given!r}; expected {KINDS['choice']}")
    values = [judged(name, value) for value in given]
    if any(value in values[:index] for index, value in enumerate(values)):
        raise ValueError(f"{name}.choice is {given!r}; expected each value once")
    return tuple(values)


def _range(name: str, kind: str, given: Any) -> tuple[Any, ...]:
    """(low, high) or (low, high, step); the ends as TrainConfig reads them."""
    said = f"{name}.{kind} is {given!r}; expected"
    if not isinstance(given, list) or len(given) != (3 if kind == "quniform" else 2):
        raise ValueError(f"{said} {KINDS[kind]}")
    if any(isinstance(value, bool) or not isinstance(value, int | float) for value in given):
        raise ValueError(f"{said} numbers, as {KINDS[kind]}")
    low, high = judged(name, given[0]), judged(name, given[1])
    if low >= high:
        raise ValueError(f"{said} low < high; fix a single value under train:")
    if kind == "loguniform" and low <= 0:
        raise ValueError(f"{said} low > 0, where its logarithm exists")
    for step in given[2:]:
        if not 0 < step <= high - low or (Decimal(str(high)) - Decimal(str(low))) % Decimal(str(step)):
            raise ValueError(f"{said} a step > 0 that divides high - low")
    return (low, high, *map(float, given[2:]))


def _condition(name: str, other: str, given: Any) -> tuple[Any, ...]:
    """The values, as TrainConfig reads them, of which the other option must have one."""
    path: KeyPath = ("space", name, "when", other)
    said = f"space.{name}.when.{other} is {given!r};"
    if other not in DEFAULTS:
        raise Problems((path, f"{said} unknown option {other!r}{nearest(str(other), list(DEFAULTS))}"))
    if other == name:
        raise Problems((path, f"{said} expected another option, not {name} itself"))
    wanted = given if isinstance(given, list) else [given]
    lists = isinstance(DEFAULTS[other], list)
    if not wanted or (lists and not all(isinstance(value, list) for value in wanted)):
        raise Problems((path, f"{said} expected {'a list of lists' if lists else 'a value or a list of values'}"))
    try:
        return tuple(judged(other, value) for value in wanted)
    except ValueError as error:
        raise Problems((path, f"space.{name}.when.{error}")) from None


def _impossible(parameter: Parameter, parameters: dict[str, Parameter], constants: dict[str, Any]) -> Iterator[Problem]:
    """The conditions of a parameter that can never hold, or that are on a continuous one."""
    for other, wanted in parameter.when.items():
        path: KeyPath = ("space", parameter.name, "when", other)
        said = f"space.{parameter.name}.when.{other} is {' or '.join(map(repr, wanted))};"
        if other in constants and constants[other] not in wanted:
            advice = f"drop {parameter.name} with space.{parameter.name}=null, or search {other}"
            yield path, f"{said} {other} is always {constants[other]!r}; {advice}"
        elif other in parameters and parameters[other].kind in CONTINUOUS:
            yield path, f"{said} expected an option of countable values, {other} is {parameters[other].kind}"
        elif never := [value for value in wanted if other in parameters and not parameters[other].holds(value)]:
            yield path, f"{said} {other} is never {never[0]!r}; expected one of {parameters[other].range_text()}"


def _misfits(space: Space) -> Iterator[Problem]:
    """Combinations that TrainConfig would refuse in the middle of a sweep."""
    for group in FIT_TOGETHER:
        searched = [p.name for p in space.parameters if p.name in group]
        refused: dict[str, str] = {}
        for chosen in space.combinations(searched) if searched else ():
            values = {name: value for name, value in {**space.fixed, **chosen}.items() if name in group}
            try:
                TrainConfig.model_validate(values)
            except ValidationError as error:
                text = " with ".join(f"{name} {value}" for name, value in values.items())
                refused.setdefault(text, next(problems(error))[1])
        if refused:
            drawn = "; ".join(f"{text} can be drawn, but {sentence}" for text, sentence in refused.items())
            yield ("space", searched[-1]), f"space.{searched[-1]}: {drawn}"
