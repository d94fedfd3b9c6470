"""Reads the `space:` of a YAML into a Space, each entry checked."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from typing import Any

from pydantic import ValidationError

from trainable.core.config import TrainConfig
from trainable.core.options import did_you_mean, fields_of_role, to_dict, validation_messages
from tune.spec.space import CONTINUOUS, DEFAULTS, KINDS, KeyPath, Parameter, Problem, Problems, Space

SUITABLE: dict[Any, tuple[str, ...]] = {int: ("randint", "choice"), float: (*CONTINUOUS, "quniform", "choice")}

# A depth that every even patch fits and a patch that every depth fits: in place of the one while the other is judged.
PERMISSIVE_DEFAULTS: dict[str, Any] = {"depth": 2, "target_shape": [512, 512, 512]}
# Options of the recipe that TrainConfig checks against each other.
COUPLED_OPTIONS = (("target_shape", "depth"), ("base_loss", "tversky_alpha", "tversky_beta"))


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
    found += [problem for p in parameters.values() for problem in _unsatisfiable(p, parameters, constants)]
    waiting, ordered = dict(parameters), list[Parameter]()
    while ready := next((p for p in waiting.values() if not waiting.keys() & p.when.keys()), None):
        ordered.append(waiting.pop(ready.name))
    for name in waiting:
        stuck = f"expected an order in which {', '.join(waiting)} can be drawn, they wait for each other"
        found.append((("space", name, "when"), f"space.{name}.when is in a cycle; {stuck}"))
    space = Space(tuple(ordered), fixed)
    if found := found or list(_invalid_combinations(space)):
        raise Problems(*found)
    return space


def _parameter(name: str, spec: Any, fixed: dict[str, Any]) -> Parameter:
    """One entry of the space, checked by itself."""
    path: KeyPath = ("space", name)
    if name not in DEFAULTS:
        raise Problems((path, f"space.{name}: unknown option {name!r}{did_you_mean(str(name), list(DEFAULTS))}"))
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
        close = did_you_mean(str(kind), list(KINDS))
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


def validated(name: str, value: Any) -> Any:
    """A value as TrainConfig reads it for this option alone; ValueError in TrainConfig's words."""
    try:
        return to_dict(TrainConfig.model_validate({**PERMISSIVE_DEFAULTS, name: value}))[name]
    except ValidationError as error:
        raise ValueError(next(validation_messages(error))[1]) from None


def _choices(name: str, given: Any) -> tuple[Any, ...]:
    """The choices as TrainConfig reads them."""
    if not isinstance(given, list) or not given:
        raise ValueError(f"{name}.choice is {given!r}; expected {KINDS['choice']}")
    values = [validated(name, value) for value in given]
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
    low, high = validated(name, given[0]), validated(name, given[1])
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
        raise Problems((path, f"{said} unknown option {other!r}{did_you_mean(str(other), list(DEFAULTS))}"))
    if other == name:
        raise Problems((path, f"{said} expected another option, not {name} itself"))
    wanted = given if isinstance(given, list) else [given]
    lists = isinstance(DEFAULTS[other], list)
    if not wanted or (lists and not all(isinstance(value, list) for value in wanted)):
        raise Problems((path, f"{said} expected {'a list of lists' if lists else 'a value or a list of values'}"))
    try:
        return tuple(validated(other, value) for value in wanted)
    except ValueError as error:
        raise Problems((path, f"space.{name}.when.{error}")) from None


def _unsatisfiable(
    parameter: Parameter, parameters: dict[str, Parameter], constants: dict[str, Any]
) -> Iterator[Problem]:
    """The conditions of a parameter that can never hold, or that are on a continuous one."""
    for other, wanted in parameter.when.items():
        path: KeyPath = ("space", parameter.name, "when", other)
        said = f"space.{parameter.name}.when.{other} is {' or '.join(map(repr, wanted))};"
        if other in constants and constants[other] not in wanted:
            advice = f"drop {parameter.name} with space.{parameter.name}=null, or search {other}"
            yield path, f"{said} {other} is always {constants[other]!r}; {advice}"
        elif other in parameters and parameters[other].kind in CONTINUOUS:
            yield path, f"{said} expected an option of countable values, {other} is {parameters[other].kind}"
        elif never := [value for value in wanted if other in parameters and not parameters[other].contains(value)]:
            yield path, f"{said} {other} is never {never[0]!r}; expected one of {parameters[other].range_text()}"


def _invalid_combinations(space: Space) -> Iterator[Problem]:
    """Combinations that TrainConfig would refuse in the middle of a sweep."""
    for group in COUPLED_OPTIONS:
        searched = [p.name for p in space.parameters if p.name in group]
        refused: dict[str, str] = {}
        for chosen in space.combinations(searched) if searched else ():
            values = {name: value for name, value in {**space.fixed, **chosen}.items() if name in group}
            try:
                TrainConfig.model_validate(values)
            except ValidationError as error:
                text = " with ".join(f"{name} {value}" for name, value in values.items())
                refused.setdefault(text, next(validation_messages(error))[1])
        if refused:
            drawn = "; ".join(f"{text} can be drawn, but {sentence}" for text, sentence in refused.items())
            yield ("space", searched[-1]), f"space.{searched[-1]}: {drawn}"
