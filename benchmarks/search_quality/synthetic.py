"""Benchmarks from a formula that has nothing to do with networks."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from search_quality.bench import Bench, Recipe, foreign
from tune.spec.kinds import Uniform


class Hartmann(Bench):
    """MFHartmann6 of mf-prior-bench, its best 1: early values have a bias, and noise that fades with the epochs."""

    epochs = 27
    CENTRES = 1e-4 * np.array(
        [
            [1312, 1696, 5569, 124, 8283, 5886],
            [2329, 4135, 8307, 3736, 1004, 9991],
            [2348, 1451, 3522, 2883, 3047, 6650],
            [4047, 8828, 8732, 5743, 1091, 381],
        ]
    )
    SLOPES = np.array(
        [[10, 3, 17, 3.5, 1.7, 8], [0.05, 10, 17, 0.1, 8, 14], [3, 3.5, 1.7, 10, 17, 8], [17, 8, 0.05, 10, 0.1, 14]]
    )
    HEIGHTS, BEST = np.array([1.0, 1.2, 3.0, 3.2]), 3.32237
    OPTIMUM = np.array([0.20169, 0.150011, 0.476874, 0.275332, 0.311652, 0.6573])

    def __init__(self, seed: int, *, bias: float, noise: float) -> None:
        """Draw the default recipe, and a start recipe and beliefs near the best one."""
        names = [f"x{i}" for i in range(6)]
        self.bias, self.noise = bias, noise / self.BEST
        self.was = foreign({name: Uniform(0.0, 1.0) for name in names}, self.epochs)
        rng = np.random.default_rng([seed, 13])
        near = np.clip(self.OPTIMUM + rng.normal(0, 0.15, 6), 0, 1)
        self.start = {name: float(value) for name, value in zip(names, near, strict=True)}
        self.default = {name: float(value) for name, value in zip(names, rng.uniform(0, 1, 6), strict=True)}
        self.beliefs = {name: (value, "low") for name, value in self.start.items()}
        self.optimum, self.best = dict(zip(names, map(float, self.OPTIMUM), strict=True)), 1.0

    def _left(self) -> NDArray[np.float64]:
        """Return how much of the training is left after each epoch, on a logarithmic scale from 1 to 0."""
        return 1 - np.log(np.arange(1, self.epochs + 1)) / math.log(self.epochs)

    def curve(self, values: Recipe) -> NDArray[np.float64]:
        bumps = np.exp(-(self.SLOPES * (np.array(list(values.values())) - self.CENTRES) ** 2).sum(1))
        curve: NDArray[np.float64] = (self.HEIGHTS - self.bias * self._left()[:, None]) @ bumps / self.BEST
        return curve

    def scores(self, values: Recipe, seed: int, number: int) -> NDArray[np.float64]:
        rng = np.random.default_rng([seed, number, 5])
        return self.curve(values) - np.abs(rng.normal(size=self.epochs)) * self.noise * self._left()


class Line(Bench):
    """For the checks: one option from 0 to 1, which is also the score, at once and without noise."""

    epochs = 27

    def __init__(self, seed: int) -> None:
        self.was = foreign({"x": Uniform(0.0, 1.0)}, self.epochs)
        self.default, self.start, self.optimum, self.best = {"x": 0.5}, {"x": 0.9}, {"x": 1.0}, 1.0
        self.beliefs = {}

    def curve(self, values: Recipe) -> NDArray[np.float64]:
        return np.full(self.epochs, values["x"])
