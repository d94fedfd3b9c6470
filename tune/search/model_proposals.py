"""The next recipe by the surrogate model: many candidates, of which the one that promises most is tried."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tune.search.recipe_features import Recipe
from tune.search.surrogate import Surrogate
from tune.spec.kinds import Choice
from tune.spec.space import Space

FROM_PRIOR, EVEN, NEARBY = 120, 60, 160  # candidates of each kind
LEADERS = 4  # recipes with the highest predictions, near which candidates are drawn
MOVED = 0.35  # share of the options in which a nearby candidate differs from its leader
STEP = 0.12  # by how much of its range an option of it moves: the standard deviation
FORGONE = 0.9  # of the uncertainty that a running trial of the same recipe takes away


def propose(surrogate: Surrogate, running: Sequence[Recipe], rng: np.random.Generator) -> list[Recipe]:
    """Return candidates in the order in which they promise to improve on the best recipe, best first.

    Args:
        surrogate: which has learned from trials.
        running: recipes that are being trained: what they will tell need not be asked again.
    """
    space = surrogate.space
    means, _ = surrogate.predict(surrogate.recipes)
    leaders = [surrogate.recipes[index] for index in np.argsort(-means)[:LEADERS]]
    names = [parameter.name for parameter in space.parameters]

    def drawn(count: int, *, use_prior: bool) -> list[Recipe]:
        shares = rng.random((count, len(names)))
        return [recipe_at(space, dict(zip(names, row, strict=True)), use_prior=use_prior) for row in shares.tolist()]

    candidates = drawn(FROM_PRIOR, use_prior=True) + drawn(EVEN, use_prior=False)
    candidates += [vary(space, leaders[index % len(leaders)], rng) for index in range(NEARBY)]
    mean, deviation = surrogate.predict(candidates)
    if running:
        likeness = surrogate.likeness(candidates, running)
        deviation = deviation * np.prod(1 - FORGONE * likeness**2, axis=1) ** 0.5
    order = np.argsort(-log_expected_improvement(mean, deviation, float(means.max())), kind="stable")
    return [candidates[index] for index in order]


def recipe_at(space: Space, shares: dict[str, float], *, use_prior: bool) -> Recipe:
    """Return the recipe at these shares of the ranges, or of the priors of those that have one."""
    known, values = space.constants, Recipe()
    for parameter in space.parameters:
        if branch := parameter.branch(known | values):
            values[parameter.name] = branch.from_unit(shares[parameter.name], use_prior=use_prior)
    return values


def vary(space: Space, leader: Recipe, rng: np.random.Generator) -> Recipe:
    """Return a recipe near another: about MOVED of its options are moved, numbers by STEP of their range.

    An option that becomes active is drawn evenly; one whose range changes keeps its share of it.
    """
    known = space.constants | leader
    moved = rng.random(len(space.parameters)) < MOVED
    if not moved.any():
        moved[rng.integers(len(moved))] = True
    shares = dict[str, float]()
    for parameter, moves in zip(space.parameters, moved, strict=True):
        draw, step = rng.random(), STEP * rng.normal()
        branch = parameter.branch(known) if parameter.name in leader else None
        if branch is None or (moves and isinstance(branch.kind, Choice)):
            shares[parameter.name] = draw
            continue
        share = branch.kind.to_unit(leader[parameter.name])
        shares[parameter.name] = min(max(share + moves * step, 0.0), 1 - 1e-12)
    return recipe_at(space, shares, use_prior=False)


def log_expected_improvement(
    mean: NDArray[np.float64], deviation: NDArray[np.float64], best: float
) -> NDArray[np.float64]:
    """Return the log of the expected improvement on `best`, also where that is too small for a float."""
    from scipy.special import log_ndtr  # here, because commands that only read a run import this module

    z = (mean - best) / deviation
    log_density = -0.5 * z**2 - 0.5 * np.log(2 * np.pi)
    near = np.maximum(z, -8.0)
    log_ratio = np.log(near + np.exp(-0.5 * near**2 - 0.5 * np.log(2 * np.pi) - log_ndtr(near))) + log_ndtr(near)
    far = log_density - 2 * np.log(np.maximum(-z, 1.0))  # density / z^2, the first term of the expansion
    return np.asarray(np.where(z > -8.0, log_ratio, far) + np.log(deviation))
