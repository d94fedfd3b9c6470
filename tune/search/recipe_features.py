"""Recipes as points: what a surrogate model compares."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tune.spec.kinds import Choice
from tune.spec.space import Space

Recipe = dict[str, Any]  # values of the active searched options
INACTIVE = 0.5  # stands for the share of the range of an option that is not active


class RecipeFeatures:
    """Turns recipes of a space into points, (features,).

    A number is its share of the range that applies to it, so that trials of one optimizer say something of another's
    lr: "in the middle of its range". A choice has one feature per value, of which one is not 0, so that any two values
    are as far from each other. An option that is not active has the middle of its range, or no value.
    """

    def __init__(self, space: Space) -> None:
        self.space, self.constants = space, space.constants

    def point(self, values: Recipe) -> list[float]:
        """Return the features of a recipe."""
        known, features = self.constants | values, list[float]()
        for parameter in self.space.parameters:
            active = parameter.name in values
            if isinstance(parameter.kind, Choice):
                chosen = parameter.kind.values.index(values[parameter.name]) if active else -1
                features += [0.5**0.5 * (index == chosen) for index in range(len(parameter.kind.values))]
                continue
            branch = parameter.branch(known) if active else None
            features.append(branch.kind.to_unit(values[parameter.name]) if branch else INACTIVE)
        return features

    def points(self, recipes: list[Recipe]) -> NDArray[np.float64]:
        """Return the points of recipes, (recipes, features)."""
        return np.array([self.point(values) for values in recipes], float).reshape(len(recipes), -1)
