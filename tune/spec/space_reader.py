"""Reads the `space:` of a YAML into a Space, each entry checked."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from pydantic import ValidationError

from trainable.core.config import TrainConfig
from trainable.core.option_errors import did_you_mean
from trainable.core.options import checked_together, option_names, permissive_values, to_dict, validation_messages
from tune.spec.kinds import KINDS, KINDS_OF_TYPE, Choice
from tune.spec.space import DEFAULTS, ConfigErrors, KeyPath, Parameter, Problem, Space


def read_space(raw: dict[str, Any], fixed: dict[str, Any]) -> Space:
    """Return the space of the YAML's section `space:`.

    Args:
        raw: the section.
        fixed: the options of `train:` as plain values.

    Raises:
        ConfigErrors: all that is wrong with the section; combinations of values only if nothing else is.
    """
    problems: list[Problem] = []
    parameters: dict[str, Parameter] = {}
    for name, entry in raw.items():
        try:
            parameters[name] = _read_parameter(name, entry, fixed)
        except ConfigErrors as error:
            problems += error.problems
    constants = {name: value for name, value in {**DEFAULTS, **fixed}.items() if name not in raw}
    problems += [problem for p in parameters.values() for problem in _unsatisfiable(p, parameters, constants)]
    waiting, ordered = dict(parameters), list[Parameter]()
    while ready := next((p for p in waiting.values() if not waiting.keys() & p.when.keys()), None):
        ordered.append(waiting.pop(ready.name))
    for name in waiting:
        expected = f"expected an order in which {', '.join(waiting)} can be drawn, they wait for each other"
        problems.append((("space", name, "when"), f"space.{name}.when is in a cycle; {expected}"))
    space = Space(tuple(ordered), fixed)
    if problems := problems or list(_invalid_combinations(space)):
        raise ConfigErrors(*problems)
    return space


def _read_parameter(name: str, entry: Any, fixed: dict[str, Any]) -> Parameter:
    """Return one entry of the space, checked by itself."""
    path: KeyPath = ("space", name)
    _check_searchable(name, fixed)
    keys = [key for key in entry if key != "when"] if isinstance(entry, dict) else []
    if len(keys) != 1:
        expected = f"expected one of {', '.join(KINDS)}, and `when` if it has a condition"
        raise ConfigErrors((path, f"space.{name} is {entry!r}; {expected}"))
    [key] = keys
    if key not in KINDS:
        close = did_you_mean(str(key), list(KINDS))
        message = f"space.{name}: unknown kind {key!r}{close}; expected one of {', '.join(KINDS)}"
        raise ConfigErrors(((*path, key), message))
    suitable = [kind.key for kind in KINDS_OF_TYPE.get(TrainConfig.model_fields[name].annotation, (Choice,))]
    if key not in suitable:
        message = f"space.{name}.{key} does not suit this option; expected {' or '.join(suitable)}"
        raise ConfigErrors(((*path, key), message))
    try:
        kind = KINDS[key].read(name, entry[key], partial(validated, name))
    except ValueError as error:
        raise ConfigErrors(((*path, key), f"space.{error}")) from None
    when = entry.get("when", {})
    if not isinstance(when, dict):
        message = f"space.{name}.when is {when!r}; expected option: value, or a list of them"
        raise ConfigErrors(((*path, "when"), message))
    return Parameter(name, kind, {other: _read_condition(name, other, allowed) for other, allowed in when.items()})


def _check_searchable(name: str, fixed: dict[str, Any]) -> None:
    """Raise ConfigErrors for what is no option, is not part of the recipe, or is fixed under `train:`."""
    path: KeyPath = ("space", name)
    if name not in DEFAULTS:
        close = did_you_mean(str(name), list(DEFAULTS))
        raise ConfigErrors((path, f"space.{name}: unknown option {name!r}{close}"))
    if name not in option_names(role="recipe"):
        reason = "is part of the protocol or of how a training runs: it can be fixed under train:, never searched"
        raise ConfigErrors((path, f"space.{name} {reason}, or scores could not be compared"))
    if name in fixed:
        message = f"train.{name} is {fixed[name]!r}, but space.{name} searches it"
        advice = f"drop one of the two: space.{name}=null or train.{name}=null"
        raise ConfigErrors((("train", name), f"{message}; {advice}"))


def validated(name: str, value: Any) -> Any:
    """Return a value of one option as TrainConfig reads it, without a check against other options.

    Raises:
        ValueError: TrainConfig refuses the value; the message is TrainConfig's.
    """
    try:
        return to_dict(TrainConfig.model_validate({**permissive_values(), name: value}))[name]
    except ValidationError as error:
        raise ValueError(next(validation_messages(error))[1]) from None


def _read_condition(name: str, other: str, given: Any) -> tuple[Any, ...]:
    """Return the values, as TrainConfig reads them, of which the other option must have one."""
    path: KeyPath = ("space", name, "when", other)
    message = f"space.{name}.when.{other} is {given!r};"
    if other not in DEFAULTS:
        raise ConfigErrors((path, f"{message} unknown option {other!r}{did_you_mean(str(other), list(DEFAULTS))}"))
    if other == name:
        raise ConfigErrors((path, f"{message} expected another option, not {name} itself"))
    allowed = given if isinstance(given, list) else [given]
    lists = isinstance(DEFAULTS[other], list)
    if not allowed or (lists and not all(isinstance(value, list) for value in allowed)):
        expected = "a list of lists" if lists else "a value or a list of values"
        raise ConfigErrors((path, f"{message} expected {expected}"))
    try:
        return tuple(validated(other, value) for value in allowed)
    except ValueError as error:
        raise ConfigErrors((path, f"space.{name}.when.{error}")) from None


def _unsatisfiable(
    parameter: Parameter, parameters: dict[str, Parameter], constants: dict[str, Any]
) -> Iterator[Problem]:
    """Yield the conditions of a parameter that can never hold, or that are on a continuous one."""
    for other, allowed in parameter.when.items():
        path: KeyPath = ("space", parameter.name, "when", other)
        message = f"space.{parameter.name}.when.{other} is {' or '.join(map(repr, allowed))};"
        if other in constants and constants[other] not in allowed:
            advice = f"drop {parameter.name} with space.{parameter.name}=null, or search {other}"
            yield path, f"{message} {other} is always {constants[other]!r}; {advice}"
        if other not in parameters:
            continue
        kind = parameters[other].kind
        if kind.continuous:
            yield path, f"{message} expected an option of countable values, {other} is {kind.key}"
        elif never := [value for value in allowed if not kind.contains(value)]:
            yield path, f"{message} {other} is never {never[0]!r}; expected one of {kind.describe()}"


def _invalid_combinations(space: Space) -> Iterator[Problem]:
    """Yield the combinations that TrainConfig would refuse in the middle of a sweep."""
    for group in checked_together():
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
