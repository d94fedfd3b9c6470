"""A space as a unit cube: recipes as rows of shares of their ranges, many at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tune.spec.kinds import Choice
from tune.spec.parameter import Branch, Parameter
from tune.spec.prior import DEVIATIONS, NumberPrior, WeightsPrior
from tune.spec.space import Space

Floats = NDArray[np.float64]
Recipe = dict[str, Any]  # values of the active searched options
INACTIVE = 0.5  # stands for the share of the range of an option that is not active
ALIKE = 0.5**0.5  # the feature of a choice's value: two values are as far apart as the ends of a range
BELOW_ONE = 1 - 1e-12


@dataclass(frozen=True)
class Points:
    """Recipes as a surrogate model compares them.

    shares: of the ranges, (recipes, options), NaN if an option is not active. features: (recipes, features). A number
    has one, its share of the range that applies, so that trials of one optimizer say something of another's lr: "in the
    middle of its range"; a choice has one per value, of which one is not 0. log_priors: (recipes,).
    """

    shares: Floats
    features: Floats
    log_priors: Floats


class UnitSpace:
    """Turns recipes of a space into points, and shares into recipes."""

    def __init__(self, space: Space) -> None:
        self.space, self.constants = space, space.constants
        self.names = [parameter.name for parameter in space.parameters]

    @property
    def feature_options(self) -> list[int]:
        """The option that each feature is of, as its index."""
        counts = [p.kind.count if isinstance(p.kind, Choice) else 1 for p in self.space.parameters]
        return [index for index, count in enumerate(counts) for _ in range(count)]

    def shares_of(self, values: Recipe) -> list[float]:
        """Return a recipe's share of each range, NaN if an option is not active."""
        known, shares = self.constants | values, list[float]()
        for parameter in self.space.parameters:
            branch = parameter.branch(known) if parameter.name in values else None
            shares.append(branch.kind.to_unit(values[parameter.name]) if branch else np.nan)
        return shares

    def recipe(self, shares: Sequence[float], *, use_prior: bool = False) -> Recipe:
        """Return the recipe at these shares of the ranges, or of the priors of those that have one."""
        known, values = dict(self.constants), Recipe()
        for parameter, share in zip(self.space.parameters, shares, strict=True):
            if branch := parameter.branch(known):
                value = branch.from_unit(share, use_prior=use_prior)
                values[parameter.name] = known[parameter.name] = value
        return values

    def points(self, recipes: Sequence[Recipe]) -> Points:
        """Return recipes as points."""
        shares = np.array([self.shares_of(values) for values in recipes], float)
        return self.settle(shares.reshape(len(recipes), len(self.names)))

    def settle(self, shares: Floats, *, use_prior: bool = False) -> Points:
        """Return the points of the recipes at these shares, (recipes, options), of the ranges or of the priors.

        A share of an option with steps becomes the middle of its step; one of an option that is not active, NaN.
        """
        shares, log_priors = np.array(shares), np.zeros(len(shares))
        chosen: dict[str, NDArray[Any]] = {}
        for column, parameter in enumerate(self.space.parameters):
            share, free = shares[:, column].copy(), np.ones(len(shares), bool)
            shares[:, column] = np.nan
            for branch in parameter.branches:
                rows = np.flatnonzero(free & self._applies(branch, chosen, len(shares)))
                free[rows] = False
                settled = np.nan_to_num(share[rows], nan=INACTIVE)
                if use_prior and branch.prior:
                    settled = bend(branch, settled)
                if not branch.kind.continuous:
                    settled = (np.floor(settled * branch.kind.count) + 0.5) / branch.kind.count
                shares[rows, column] = settled
                log_priors[rows] += log_density(branch, settled)
            if not parameter.kind.continuous:
                chosen[parameter.name] = self._values(parameter, chosen, shares[:, column])
        return Points(shares, self._features(shares), log_priors)

    def _applies(self, branch: Branch, chosen: dict[str, NDArray[Any]], count: int) -> NDArray[np.bool_]:
        """Return in which of the recipes a range applies."""
        found = np.ones(count, bool)
        for name, allowed in branch.when.items():
            if name in self.constants:
                found &= self.constants[name] in allowed
            else:
                found &= np.array([value in allowed for value in chosen[name].tolist()], bool)
        return found

    def _values(self, parameter: Parameter, chosen: dict[str, NDArray[Any]], shares: Floats) -> NDArray[Any]:
        """Return the values of an option that others may depend on, None where it is not active."""
        values = np.empty(len(shares), object)
        if not any(parameter.name in branch.when for other in self.space.parameters for branch in other.branches):
            return values
        for branch in parameter.branches:
            for row in np.flatnonzero(self._applies(branch, chosen, len(shares)) & ~np.isnan(shares)).tolist():
                values[row] = branch.kind.from_unit(float(shares[row]))
        return values

    def _features(self, shares: Floats) -> Floats:
        """Return the features of recipes, (recipes, features)."""
        found = []
        for column, parameter in enumerate(self.space.parameters):
            share = shares[:, column]
            if isinstance(parameter.kind, Choice):
                at = np.where(np.isnan(share), -1, share * parameter.kind.count).astype(int)
                found += [ALIKE * (at == index) for index in range(parameter.kind.count)]
            else:
                found.append(np.nan_to_num(share, nan=INACTIVE))
        return np.array(found, float).T.reshape(len(shares), -1)


def bend(branch: Branch, shares: Floats) -> Floats:
    """Return the shares of a range below which its prior has these probabilities, as Prior.from_unit does."""
    from scipy.special import ndtr, ndtri  # here, because commands that only read a run import this module

    prior, kind = branch.prior, branch.kind
    if isinstance(prior, WeightsPrior):
        ends = np.cumsum([0.0, *prior.weights])
        drawn = shares * ends[-1]
        index = np.clip(np.searchsorted(ends, drawn, side="right") - 1, 0, len(prior.weights) - 1)
        within = (drawn - ends[index]) / np.array(prior.weights)[index]
        return np.asarray(np.minimum((index + np.clip(within, 0, BELOW_ONE)) / len(prior.weights), BELOW_ONE))
    assert isinstance(prior, NumberPrior)
    centre, deviation = kind.to_unit(prior.at), DEVIATIONS[prior.confidence]
    low, high = ndtr(-centre / deviation), ndtr((1 - centre) / deviation)
    return np.asarray(np.clip(centre + deviation * ndtri(low + shares * (high - low)), 0, BELOW_ONE))


def log_density(branch: Branch, shares: Floats) -> Floats:
    """Return the log prior of a range at these shares, as Prior.log_density does."""
    prior, kind = branch.prior, branch.kind
    if prior is None or not len(shares):
        return np.zeros(len(shares))
    if not kind.continuous:
        known = {share: prior.log_density(kind, kind.from_unit(share)) for share in set(shares.tolist())}
        return np.array([known[share] for share in shares.tolist()], float)
    assert isinstance(prior, NumberPrior)
    centre, deviation = kind.to_unit(prior.at), DEVIATIONS[prior.confidence]
    return np.asarray(prior.log_density(kind, prior.at) - 0.5 * ((shares - centre) / deviation) ** 2)
