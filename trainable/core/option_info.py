"""OptionInfo: what is known of an option besides its type, default and limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import Field
from pydantic.fields import FieldInfo

Role = Literal["recipe", "protocol", "run"]


@dataclass(frozen=True)
class Above:
    """The values of an option that are above a number, or above the value of another option. limit: it, or its name."""

    limit: float | str


Condition = tuple[Any, ...] | Above  # the values of an option that fulfil it


@dataclass(frozen=True)
class OptionInfo:
    """Facts of an option, from which every list of options is made (see options.option_names).

    Attributes:
        group: heading in --help and in the docs.
        role: "recipe" options may be searched by a sweep; "protocol" options define what scores mean, so a sweep may
            fix but never search them; "run" options say where and how a training runs.
        unit: of its values, for --help and the docs.
        fixed: a resumed training cannot change it, since the shape of the state or the meaning of scores depends on it.
        memory: a larger value needs "more" GPU memory; another value needs an "other" amount.
        one_call: belongs to one call of the program, not to the training; not written to training_config.json.
        starting_point: names weights or a state to start from, read once.
        prediction: a prediction depends on it, in addition to the checkpoint.
        exported: part of an exported recipe although its role is "run".
        compared: scores of two sweeps are comparable only if its "value" is the same, or the "hash" of data and split
            that replaces it.
        over_epochs: over another number of epochs the lr schedule keeps its shape if this "count" is scaled in
            proportion, or this "rate" per epoch is raised to the inverse power.
        set_by: a sweep cannot fix it as a training option: the "launch" sets it, or it is an option of the "study".
        checked_with: name of the check that compares it with other options.
        permissive: a value that suits every value of the options that it is checked with.
        acts_if: what other options must be for this one to have an effect, by their names.
    """

    group: str
    role: Role
    unit: str = ""
    fixed: bool = False
    memory: Literal["", "more", "other"] = ""
    one_call: bool = False
    starting_point: bool = False
    prediction: bool = False
    exported: bool = False
    compared: Literal["", "value", "hash"] = ""
    over_epochs: Literal["", "count", "rate"] = ""
    set_by: Literal["", "launch", "study"] = ""
    checked_with: str = ""
    permissive: Any = None
    acts_if: Mapping[str, Condition] = field(default_factory=dict)


INFO = "info"  # key of a field's json_schema_extra


def option(
    default: Any,
    meaning: str,
    *,
    gt: float | None = None,
    ge: float | None = None,
    lt: float | None = None,
    le: float | None = None,
    **facts: Any,
) -> Any:
    """Return a pydantic field of TrainConfig.

    Args:
        meaning: for --help and the docs.
        gt, ge, lt, le: limits of the value: >, >=, <, <=.
        facts: attributes of OptionInfo, at least group and role.
    """
    extra: dict[str, Any] = {INFO: OptionInfo(**facts)}
    return Field(default, description=meaning, gt=gt, ge=ge, lt=lt, le=le, json_schema_extra=extra)


def info_of(field: FieldInfo) -> OptionInfo:
    """Return the OptionInfo of a field that `option` made."""
    assert isinstance(field.json_schema_extra, dict)
    info: Any = field.json_schema_extra[INFO]
    assert isinstance(info, OptionInfo)
    return info
