"""Recipes that trials try before any that is drawn: those of `start:`, and what a user suggests."""

from __future__ import annotations

from typing import Any

import optuna

from tune.spec.space import encode_values
from tune.spec.sweep_config import SweepConfig


def enqueue_start(study: optuna.Study, config: SweepConfig) -> None:
    """Have the next trials try the recipes of `start:` that no trial has, after those that were enqueued earlier."""
    for _, values in config.given_recipes[1:]:
        enqueue_recipe(study, values)


def enqueue_recipe(study: optuna.Study, values: dict[str, Any]) -> int | None:
    """Have a trial try a recipe, after those that were enqueued earlier.

    Args:
        study: of the sweep.
        values: of the searched options that are drawn in the recipe.

    Returns:
        The number of its trial; None if a trial has this recipe already, enqueued ones included.
    """
    params, trials = encode_values(values), study.get_trials(deepcopy=False)
    if any(frozen.system_attrs.get("fixed_params", frozen.params) == params for frozen in trials):
        return None
    study.enqueue_trial(params)
    return len(trials)
