"""What is derived from TrainConfig's fields: lists of options, help texts, configs from plain values."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from trainable.core.config import TrainConfig
from trainable.core.errors import InputError
from trainable.core.option_errors import allowed_values, did_you_mean, error_text, expectation, literals
from trainable.core.option_info import OptionInfo, info_of
from trainable.core.storage import is_uri, without_keys

OPTIONS = {name: info_of(field) for name, field in TrainConfig.model_fields.items()}


def option_info(name: str) -> OptionInfo:
    """Return the facts of an option; KeyError if there is none of this name."""
    return OPTIONS[name]


def option_names(**facts: Any) -> list[str]:
    """Return the names of the options whose OptionInfo has all of these values, in the order of TrainConfig.

    option_names(role="recipe", fixed=True) are the searchable options that a resumed training cannot change.

    Raises:
        AttributeError: for a fact that OptionInfo does not have.
    """
    return [
        name for name, info in OPTIONS.items() if all(getattr(info, fact) == wanted for fact, wanted in facts.items())
    ]


def path_options() -> list[str]:
    """Return the names of the options that are a path, or may be; lists of paths are left out."""
    kinds = {
        name: get_args(field.annotation) or (field.annotation,) for name, field in TrainConfig.model_fields.items()
    }
    return [name for name, arguments in kinds.items() if Path in arguments and ... not in arguments]


def words_of(name: str) -> list[str]:
    """Return the words that an option may be, such as 2021 for `labels`; none if it may be any path."""
    return list(literals(TrainConfig.model_fields[name].annotation))


def absolute_path(name: str, value: Any) -> Any:
    """Return a value of a path option as an absolute path; None, a URI and a word that the option allows stay."""
    return value if value is None or is_uri(value) or str(value) in words_of(name) else Path(value).resolve()


def checked_together() -> list[list[str]]:
    """Return the groups of options that TrainConfig checks against each other and that a sweep may search."""
    checks = dict.fromkeys(info.checked_with for info in OPTIONS.values() if info.checked_with)
    return [option_names(checked_with=check) for check in checks]


def permissive_values() -> dict[str, Any]:
    """Return OptionInfo.permissive by the name of each option that has one."""
    return {name: info.permissive for name, info in OPTIONS.items() if info.permissive is not None}


def least_value(name: str) -> int:
    """Return the lower limit (ge) of a whole-number option; ValueError if the option has none."""
    (limit,) = (limit.ge for limit in TrainConfig.model_fields[name].metadata if hasattr(limit, "ge"))
    return int(limit)


def allowed(name: str) -> str:
    """Return what an option may be: "one of adam, adamw, sgd", "a number > 0"."""
    return allowed_values(TrainConfig.model_fields[name])


def help_text(name: str) -> str:
    """Return an option's meaning, what it may be, its unit, its default, and a note if it cannot change on --resume."""
    field, info = TrainConfig.model_fields[name], option_info(name)
    unit = f", {info.unit}" if info.unit else ""
    resume = "; cannot change on --resume" if info.fixed else ""
    return f"{field.description} ({allowed(name)}{unit}; default {format_value(field.default)}{resume})"


def format_value(value: Any) -> str:
    """Return an option's value as a user would type it, floats rounded to 4 significant digits."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "none"}[value]
    if isinstance(value, tuple):
        return " ".join(map(format_value, value)) or "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def validation_messages(error: ValidationError) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Yield each problem that TrainConfig found as (path, message), each once.

    The path is (option,), (option, index) for an item of a list, or () for a check of several options.
    """
    yield from dict.fromkeys(map(_validation_message, error.errors()))  # one for each type that a value may have


def _validation_message(item: ErrorDetails) -> tuple[tuple[str | int, ...], str]:
    """Return a problem that TrainConfig found as (path, message)."""
    place = item["loc"]
    path = place if all(isinstance(part, int) for part in place[1:]) else place[:1]  # else of one type of several
    name = str(path[0]) if path else ""
    if item["type"] == "invalid_key":  # one that is no text, as YAML reads `on:` or `3:`
        return (str(item["input"]),), f"unknown option {item['input']!r}"
    if item["type"] == "extra_forbidden":
        return path, f"unknown option {name!r}{did_you_mean(name, TrainConfig.model_fields)}"
    if name not in TrainConfig.model_fields:
        return path, error_text(item)
    part = f" (item {path[1]})" if len(path) > 1 else ""
    expected = expectation(item, TrainConfig.model_fields[name])
    return path, f"{name} is {without_keys(item['input'])!r}{part}; expected {expected}"


def make_config(values: dict[str, Any], source: str = "options", *, begun: bool = False) -> TrainConfig:
    """Return a TrainConfig of plain values by option name; options that are missing have their defaults.

    Args:
        source: what the values are from (a file, a command), for the error message.
        begun: they are of a checkpoint; what an older version allowed is then taken.

    Raises:
        InputError: naming the source and each problem, for values that TrainConfig refuses.
    """
    try:
        return TrainConfig.model_validate(values, context={"begun": begun})
    except ValidationError as error:
        raise InputError("\n".join(f"{source}: {message}" for _, message in validation_messages(error))) from None


def to_dict(config: TrainConfig, *, changed_only: bool = False) -> dict[str, Any]:
    """Return the options as values for JSON, YAML and checkpoints; changed_only: without those at their default."""
    return config.model_dump(mode="json", exclude_defaults=changed_only)
