"""Options that are set and cannot act with the others as they are, such as momentum with adam."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from trainable.core.config import TrainConfig
from trainable.core.option_info import Above, Condition
from trainable.core.options import format_value, option_info, to_dict


def why_idle(name: str, values: Mapping[str, Any]) -> str:
    """Return why an option has no effect: "optimizer is adam, not sgd"; "" if it has one.

    values: of all options, as plain values.
    """
    reasons = (_unfulfilled(other, condition, values) for other, condition in option_info(name).acts_if.items())
    return next(filter(None, reasons), "")


def _unfulfilled(name: str, condition: Condition, values: Mapping[str, Any]) -> str:
    """Return in words how an option's value does not fulfil a condition; "" if it does."""
    value = values[name]
    if not isinstance(condition, Above):
        wanted = " or ".join(format_value(allowed) for allowed in condition)
        return "" if value in condition else f"{name} is {format_value(value)}, not {wanted}"
    limit = condition.limit
    number = values[limit] if isinstance(limit, str) else limit
    return "" if value > number else f"{name} is {format_value(value)}, not above {format_value(limit)}"


def idle_options(config: TrainConfig, given: Iterable[str]) -> dict[str, str]:
    """Return why each option without effect has none, of those that are given and not at their default."""
    values, default = to_dict(config), to_dict(TrainConfig())
    reasons = {name: why_idle(name, values) for name in given if values[name] != default[name]}
    return {name: reason for name, reason in reasons.items() if reason}


def idle_text(reasons: Mapping[str, str]) -> str:
    """Return a warning of one line on options without effect, by why they have none; "" without any."""
    texts = (f"{name} ({reason})" for name, reason in reasons.items())
    return f"warning: without effect here: {', '.join(texts)}" if reasons else ""
