"""A recipe over another number of epochs: what counts epochs is scaled with them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainable.core.config import TrainConfig
from trainable.core.options import least_value, option_names, to_dict


def scale_to_epochs(recipe: TrainConfig, epochs: int) -> TrainConfig:
    """Return the recipe with this number of epochs, and its lr schedule scaled to them.

    Options that count epochs are scaled in proportion and rounded; a rate per epoch becomes rate ** (old / new epochs).
    """
    values = {name: getattr(recipe, name) for name in to_dict(recipe)}
    return recipe.model_copy(update={**scaled_options(values, epochs / recipe.epochs), "epochs": epochs})


def scaled_options(values: Mapping[str, Any], factor: float) -> dict[str, Any]:
    """Return those of these options that depend on the number of epochs, for `factor` times as many."""
    scaled: dict[str, Any] = {}
    for name in option_names(over_epochs="count"):
        value = values.get(name)
        if isinstance(value, tuple | list):
            scaled[name] = type(value)(max(1, round(item * factor)) for item in value)
        elif value is not None:
            scaled[name] = max(least_value(name), round(value * factor))
    rates = {name: values[name] ** (1 / factor) for name in option_names(over_epochs="rate") if name in values}
    return {**scaled, **rates}
