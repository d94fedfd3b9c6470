"""The next recipe by the surrogate model: many candidates, of which the one that promises most is tried."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from tune.search.surrogate import Surrogate, matern
from tune.search.unit_space import BELOW_ONE, Floats, Points, Recipe
from tune.spec.kinds import Choice

FROM_PRIOR, EVEN, NEARBY = 100, 50, 150  # candidates of each kind
LEADERS = 4  # recipes with the highest predictions, near which candidates are drawn
MOVED = 0.35  # share of the options in which a nearby candidate differs from its leader
STEP = 0.12  # by how much of its range an option of it moves: the standard deviation
FORGONE = 0.9  # of the uncertainty that a running trial of the same recipe takes away


def propose(surrogate: Surrogate, running: Sequence[Recipe], rng: np.random.Generator) -> Iterator[Recipe]:
    """Yield candidates in the order in which they promise to improve on the best recipe, best first.

    Args:
        surrogate: which has learned from trials.
        running: recipes that are being trained: what they will tell need not be asked again.
    """
    unit, means = surrogate.unit_space, surrogate.means()
    leaders = surrogate.points.shares[np.argsort(-means, kind="stable")[:LEADERS]]
    width = len(unit.names)
    points = joined(
        unit.settle(rng.random((FROM_PRIOR, width)), use_prior=True),
        unit.settle(rng.random((EVEN, width))),
        unit.settle(nearby(surrogate, leaders, rng)),
    )
    mean, deviation = surrogate.predict(points)
    if running:
        likeness = matern(points.features, unit.points(running).features, surrogate.lengths)
        deviation = deviation * np.prod(1 - FORGONE * likeness**2, axis=1) ** 0.5
    order = np.argsort(-log_expected_improvement(mean, deviation, float(means.max())), kind="stable")
    return (unit.recipe(points.shares[index].tolist()) for index in order.tolist())


def joined(*groups: Points) -> Points:
    """Return all points of some groups."""
    return Points(
        *(np.concatenate([getattr(group, name) for group in groups]) for name in ("shares", "features", "log_priors"))
    )


def nearby(surrogate: Surrogate, leaders: Floats, rng: np.random.Generator) -> Floats:
    """Return shares of recipes near the leaders, (NEARBY, options).

    About MOVED of their options are moved, numbers by STEP of their range, choices to any value. An option that becomes
    active is drawn evenly; one whose range changes keeps its share of it.
    """
    shares = leaders[np.arange(NEARBY) % len(leaders)]
    drawn, steps = rng.random(shares.shape), STEP * rng.normal(size=shares.shape)
    moved = rng.random(shares.shape) < MOVED
    moved[np.arange(NEARBY), rng.integers(shares.shape[1], size=NEARBY)] |= ~moved.any(1)
    choices = np.array([isinstance(parameter.kind, Choice) for parameter in surrogate.unit_space.space.parameters])
    stepped = np.clip(shares + moved * steps, 0, BELOW_ONE)
    return np.where(np.isnan(shares) | (moved & choices), drawn, stepped)


def log_expected_improvement(mean: Floats, deviation: Floats, best: float) -> NDArray[np.float64]:
    """Return the log of the expected improvement on `best`, also where that is too small for a float."""
    from scipy.special import log_ndtr  # here, because commands that only read a run import this module

    z = (mean - best) / deviation
    log_density = -0.5 * z**2 - 0.5 * np.log(2 * np.pi)
    near = np.maximum(z, -8.0)
    log_ratio = np.log(near + np.exp(-0.5 * near**2 - 0.5 * np.log(2 * np.pi) - log_ndtr(near))) + log_ndtr(near)
    far = log_density - 2 * np.log(np.maximum(-z, 1.0))  # density / z^2, the first term of the expansion
    return np.asarray(np.where(z > -8.0, log_ratio, far) + np.log(deviation))
