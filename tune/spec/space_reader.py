"""Reads the `space:` of a YAML into a Space, each entry checked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from pydantic import ValidationError

from trainable.core.config import TrainConfig
from trainable.core.option_errors import did_you_mean
from trainable.core.options import checked_together, option_names, permissive_values, to_dict, validation_messages
from tune.spec.kinds import KINDS, KINDS_OF_TYPE, Choice
from tune.spec.parameter import Branch, Parameter
from tune.spec.prior import read_prior
from tune.spec.space import DEFAULTS, ConfigErrors, KeyPath, Problem, Space, key_text


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
    waiting, ordered = dict(parameters), list[Parameter]()
    while ready := next((p for p in waiting.values() if not waiting.keys() & p.depends_on), None):
        ordered.append(waiting.pop(ready.name))
    for name in waiting:
        expected = f"expected an order in which {', '.join(waiting)} can be drawn, they wait for each other"
        problems.append((("space", name, "when"), f"space.{name}.when is in a cycle; {expected}"))
    space = Space(tuple(ordered), fixed)
    if not waiting:
        parameters = {p.name: replace(p, always=_always_drawn(p, space)) for p in ordered}
        space = Space(tuple(parameters.values()), fixed)
    problems += [problem for p in parameters.values() for problem in _unsatisfiable(p, parameters, constants)]
    if problems := problems or list(_invalid_combinations(space)):
        raise ConfigErrors(*problems)
    return space


def _read_parameter(name: str, entry: Any, fixed: dict[str, Any]) -> Parameter:
    """Return one entry of the space, checked by itself: one range, or a list of ranges with a condition each."""
    _check_searchable(name, fixed)
    if not isinstance(entry, list) or not entry:
        return Parameter(name, (_read_branch(name, ("space", name), entry),))
    problems: list[Problem] = []
    branches: list[Branch] = []
    for index, item in enumerate(entry):
        try:
            branches.append(_read_branch(name, ("space", name, index), item))
        except ConfigErrors as error:
            problems += error.problems
    if problems := problems or list(_conflicting_branches(name, branches)):
        raise ConfigErrors(*problems)
    return Parameter(name, tuple(branches))


def _read_branch(name: str, path: KeyPath, entry: Any) -> Branch:
    """Return one range of an option, checked by itself. path: of the entry in the YAML."""
    text = key_text(path)
    keys = [key for key in entry if key not in ("when", "prior")] if isinstance(entry, dict) else []
    if len(keys) != 1:
        expected = f"expected one of {', '.join(KINDS)}, and `when` if it has a condition"
        raise ConfigErrors((path, f"{text} is {entry!r}; {expected}"))
    [key] = keys
    if key not in KINDS:
        close = did_you_mean(str(key), [*KINDS, "when", "prior"])
        message = f"{text}: unknown kind {key!r}{close}; expected one of {', '.join(KINDS)}"
        raise ConfigErrors(((*path, key), message))
    suitable = [kind.key for kind in KINDS_OF_TYPE.get(TrainConfig.model_fields[name].annotation, (Choice,))]
    if key not in suitable:
        message = f"{text}.{key} does not suit this option; expected {' or '.join(suitable)}"
        raise ConfigErrors(((*path, key), message))
    check, part = partial(validated, name), key
    try:
        kind = KINDS[key].read(text.removeprefix("space."), entry[key], check)
        part = "prior"
        prior = read_prior(text.removeprefix("space."), entry["prior"], kind, check) if "prior" in entry else None
    except ValueError as error:
        raise ConfigErrors(((*path, part), f"space.{error}")) from None
    when = entry.get("when", {})
    if not isinstance(when, dict):
        message = f"{text}.when is {when!r}; expected option: value, or a list of them"
        raise ConfigErrors(((*path, "when"), message))
    conditions = {other: _read_condition(name, path, other, allowed) for other, allowed in when.items()}
    return Branch(kind, conditions, prior)


def _conflicting_branches(name: str, branches: Sequence[Branch]) -> Iterator[Problem]:
    """Yield what is wrong with the ranges of one option as a list: of several kinds, or two for the same recipe."""
    first = branches[0].kind
    for index, branch in enumerate(branches):
        path: KeyPath = ("space", name, index)
        if type(branch.kind) is not type(first):
            message = f"{key_text(path)} is {branch.kind.key} and space.{name}[0] is {first.key}"
            yield (*path, branch.kind.key), f"{message}; expected ranges of one kind: samplers take no others of a name"
        elif isinstance(first, Choice) and branch.kind != first:
            message = f"{key_text(path)}.choice is {branch.kind.to_list()} and space.{name}[0].choice {first.to_list()}"
            advice = "Optuna cannot vary a choice; `prior: {weights: ...}` may differ"
            yield (*path, "choice"), f"{message}; expected the same values in the same order: {advice}"
        elif len(branches) > 1 and not branch.when:
            expected = "expected `when`, since each of several ranges needs a condition"
            yield path, f"{key_text(path)} has no condition; {expected}"
        else:
            for other in range(index):
                if both := _example_of_both(branches[other], branch):
                    message = f"{key_text(path)} and space.{name}[{other}] both apply if {both}"
                    yield (*path, "when"), f"{message}; expected conditions of which only one can hold"


def _example_of_both(one: Branch, other: Branch) -> str:
    """Return conditions under which two ranges apply, in words; "" if an option that both name keeps them apart."""
    common = {name: [v for v in one.when[name] if v in other.when[name]] for name in one.when.keys() & other.when}
    if not all(common.values()):
        return ""
    both = one.when | other.when | common
    return " and ".join(f"{name} = {allowed[0]}" for name, allowed in both.items())


def _always_drawn(parameter: Parameter, space: Space) -> bool:
    """Return whether one of several ranges of an option applies to every recipe."""
    if len(parameter.branches) == 1:
        return False
    return all(parameter.active(space.constants | chosen) for chosen in space.combinations(parameter.depends_on))


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


def _read_condition(name: str, path_of_range: KeyPath, other: str, given: Any) -> tuple[Any, ...]:
    """Return the values, as TrainConfig reads them, of which the other option must have one."""
    path: KeyPath = (*path_of_range, "when", other)
    message = f"{key_text(path)} is {given!r};"
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
        raise ConfigErrors((path, f"{key_text(path[:-1])}.{error}")) from None


def _unsatisfiable(
    parameter: Parameter, parameters: dict[str, Parameter], constants: dict[str, Any]
) -> Iterator[Problem]:
    """Yield the conditions of a parameter that can never hold, or that are on a continuous one.

    One of several ranges may never apply if the others cover every recipe: ranges for all optimizers also serve a sweep
    that searches two of them.
    """
    several = len(parameter.branches) > 1
    for index, branch in enumerate(parameter.branches):
        start: KeyPath = ("space", parameter.name, *[index] * several, "when")
        for other, allowed in branch.when.items():
            message = f"{key_text((*start, other))} is {' or '.join(map(repr, allowed))};"
            if other in constants and constants[other] not in allowed and not parameter.always:
                drop = "drop this range" if several else f"drop {parameter.name} with space.{parameter.name}=null"
                advice = f"{other} is always {constants[other]!r}; {drop}, or search {other}"
                yield (*start, other), f"{message} {advice}"
            if other not in parameters:
                continue
            kind = parameters[other].kind
            if kind.continuous:
                expected = f"expected an option of countable values, {other} is {kind.key}"
                yield (*start, other), f"{message} {expected}"
            elif not parameter.always and (never := [value for value in allowed if not kind.contains(value)]):
                expected = f"expected one of {kind.describe()}"
                yield (*start, other), f"{message} {other} is never {never[0]!r}; {expected}"


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
