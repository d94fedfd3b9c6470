"""What is known of a recipe's GPU memory before it runs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from optuna.trial import FrozenTrial

from trainable.core.options import OPTIONS
from tune.spec.space import DEFAULTS, Space

MEMORY_OPTIONS = {name: info.memory for name, info in OPTIONS.items() if info.memory}


def out_of_memory(space: Space, trials: Iterable[FrozenTrial]) -> list[dict[str, Any]]:
    """Return the recipes of trials that ran out of GPU memory, with all options."""
    infeasible = [frozen.params for frozen in trials if any(value > 0 for value in frozen.constraints.values())]
    return [DEFAULTS | space.constants | space.decode_params(params) for params in infeasible]


def runs_out(space: Space, values: dict[str, Any], limits: Iterable[dict[str, Any]]) -> bool:
    """Return whether a recipe is known to need as much GPU memory as one of these, which ran out of it.

    Args:
        space: of the recipe.
        values: of its active searched options.
        limits: recipes of out_of_memory.
    """
    recipe = DEFAULTS | space.constants | values
    return any(dominates_in_memory(recipe, other) for other in limits)


def dominates_in_memory(recipe: dict[str, Any], other: dict[str, Any]) -> bool:
    """Return whether a recipe is known to need at least as much GPU memory as `other`; both have all options.

    It is if each option with memory="more" in TrainConfig is at least as large, each item of a list too, and each with
    memory="other" is equal.
    """
    for name, effect in MEMORY_OPTIONS.items():
        value, limit = recipe[name], other[name]
        if value != limit and (effect == "other" or not np.all(np.asarray(value) >= np.asarray(limit))):
            return False
    return True
