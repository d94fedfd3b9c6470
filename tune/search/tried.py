"""Recipes that have been tried."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from optuna.trial import FrozenTrial

from tune.spec.space import Space


def recipes_of(space: Space, trials: Iterable[FrozenTrial]) -> dict[int, dict[str, Any]]:
    """Return the searched options of the trials in a space, by number."""
    return {t.number: space.decode_params(t.params) for t in trials if t.params and "outside" not in t.user_attrs}
