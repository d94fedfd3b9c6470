"""A Gaussian process from recipes to the scores at their ends, with the prior of the space as a part of its mean."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tune.search.expected_ends import ExpectedEnd
from tune.search.unit_space import Floats, Points, Recipe, UnitSpace
from tune.spec.space import Space

MIN_ENDS = 3  # from fewer it learns nothing
FACTORS = (1 / 3, 3.0)  # of the length of a single option, which acts more or less than others do
FACTOR_DEVIATION = 1.2  # of the logarithm of a factor, before any trial
MAX_COMPARED = 100  # trials by which the kernel is chosen, of more than these every second, third, ...
LENGTHS = (0.3, 0.6, 1.2)  # tried length scales, in units of sqrt(options) / 2
VARIANCES = (0.5, 2.0)  # tried variances of the signal, in units of the spread of the better half
NOISES = (1.0, 2.0)  # tried factors of the estimates' variances
MEAN_VARIANCE = 4.0  # of the level of all recipes
JITTER = 0.02  # at least this variance of an estimate: trainings of one recipe differ by their seeds
BELIEVED = 0.3  # score, in units of the spread, per unit of log prior; and the standard deviation of this belief


def matern(points: Floats, others: Floats, lengths: float | Floats) -> Floats:
    """Return the Matern 5/2 kernel of two sets of points, (points, others). lengths: of all features, or of each."""
    left, right = points / lengths, others / lengths
    squared = (left**2).sum(1)[:, None] + (right**2).sum(1)[None] - 2 * left @ right.T
    distance = np.sqrt(5 * np.maximum(squared, 0))
    return np.asarray((1 + distance + distance**2 / 3) * np.exp(-distance))


@dataclass(frozen=True)
class Scale:
    """Turns scores into numbers of the order of 1: in units of the spread of the better half, around its median.

    The spread is at least half of what the best one is above the median of all: a sweep that has tried the same region
    often is not to forget how far others are from it.

    What is more than one spread below is compressed, since how bad a bad recipe is says little of the best ones.
    """

    middle: float
    spread: float

    @classmethod
    def of(cls, ends: Sequence[ExpectedEnd]) -> Scale:
        """Return the scale of these scores."""
        scores = np.sort([end.score for end in ends])[::-1]
        better = scores[: max(3, len(scores) // 2)]
        noise = float(np.median([end.variance for end in ends])) ** 0.5
        spread = max(float(np.std(better)), float(scores[0] - np.median(scores)) / 2, 0.7 * noise, 1e-9)
        return cls(float(np.median(better)), spread)

    def shrink(self, scores: Floats, variances: Floats) -> tuple[Floats, Floats]:
        """Return the numbers of scores, and their variances."""
        plain = (scores - self.middle) / self.spread
        low = np.maximum(-plain, 1.0)
        return np.where(plain < -1, -1 - np.log(low), plain), variances / self.spread**2 / low**2


class Surrogate:
    """A Gaussian process, fitted to where trials end or would end.

    Its mean is the log prior of a recipe times a coefficient that the trials tell: at first BELIEVED, and 0 or less if
    likely recipes turn out no better than others. So a prior fades as trials contradict it.

    Attributes:
        coefficient: what the log prior counts for, after these trials; 0 in a space without a prior.
        ready: whether there were enough trials; if not, nothing can be predicted.
    """

    def __init__(self, space: Space) -> None:
        self.unit_space = UnitSpace(space)
        self.unit = len(space.parameters) ** 0.5 / 2
        self.believed = BELIEVED if space.has_prior else 0.0
        self.coefficient, self.ready = self.believed, False

    def fit(self, recipes: Sequence[Recipe], ends: Sequence[ExpectedEnd]) -> Surrogate:
        """Fit it to recipes and where each of them ends; return itself."""
        self.ready = len(ends) >= MIN_ENDS
        if not self.ready:
            return self
        self.points = self.unit_space.points(recipes)
        scores, variances = (np.array([getattr(end, name) for end in ends]) for name in ("score", "variance"))
        targets, noise = Scale.of(ends).shrink(scores, variances)
        self._choose_kernel(targets - self.believed * self.points.log_priors, noise)
        return self

    @property
    def misled(self) -> bool:
        """Whether the trials say that the prior misleads."""
        return self.ready and self.coefficient <= 0 < self.believed

    def _choose_kernel(self, residuals: Floats, noise: Floats) -> None:
        """Take the likeliest of a few kernels: a grid, then one length after the other, which takes little time."""
        from scipy.linalg import solve_triangular  # here, because commands that only read a run import this module

        log_priors = self.points.log_priors
        some = slice(None, None, -(-len(log_priors) // MAX_COMPARED))
        features, shared = self.points.features[some], np.outer(log_priors, log_priors)
        common = MEAN_VARIANCE + self.believed**2 * shared

        def kernel(correlation: Floats, variance: float, factor: float, rows: slice) -> Floats:
            return variance * correlation + common[rows, rows] + np.diag(noise[rows] * factor + JITTER)

        def likelihood(correlation: Floats, variance: float, factor: float) -> float:
            root = np.linalg.cholesky(kernel(correlation, variance, factor, some))
            white = solve_triangular(root, residuals[some], lower=True)
            likely = -0.5 * white @ white - np.log(np.diag(root)).sum()
            return float(likely - 0.5 * np.log(variance) ** 2 - 0.5 * np.log(factor) ** 2)

        best, chosen = -np.inf, (0.0, 0.0, 0.0)
        for length in LENGTHS:
            correlation = matern(features, features, length * self.unit)
            for variance, factor in itertools.product(VARIANCES, NOISES):
                if (likely := likelihood(correlation, variance, factor)) > best:
                    best, chosen = likely, (length, variance, factor)
        length, self.variance, factor = chosen
        self.lengths = np.full(features.shape[1], length * self.unit)
        options = np.array(self.unit_space.feature_options)
        for option in range(options[-1] + 1):
            for times in FACTORS:
                lengths = np.where(options == option, length * self.unit * times, self.lengths)
                likely = likelihood(matern(features, features, lengths), self.variance, factor)
                likely -= 0.5 * (np.log(times) / FACTOR_DEVIATION) ** 2
                if likely > best:
                    best, self.lengths = likely, lengths
        correlation = matern(self.points.features, self.points.features, self.lengths)
        self.root = np.linalg.cholesky(kernel(correlation, self.variance, factor, slice(None)))
        self.weights = solve_triangular(self.root.T, solve_triangular(self.root, residuals, lower=True))
        self.coefficient = self.believed + self.believed**2 * float(log_priors @ self.weights)

    def predict(self, points: Points) -> tuple[Floats, Floats]:
        """Return mean and standard deviation of the number of each recipe, (recipes,); ready must be true."""
        from scipy.linalg import solve_triangular

        log_priors = points.log_priors
        kernel = self.variance * matern(points.features, self.points.features, self.lengths) + MEAN_VARIANCE
        kernel = kernel + self.believed**2 * np.outer(log_priors, self.points.log_priors)
        known = solve_triangular(self.root, kernel.T, lower=True)
        alone = self.variance + MEAN_VARIANCE + (self.believed * log_priors) ** 2
        variance = np.maximum(alone - (known**2).sum(0), 1e-9)
        return kernel @ self.weights + self.believed * log_priors, np.sqrt(variance)

    def means(self) -> Floats:
        """Return the mean of the number of each recipe that it has learned from."""
        return self.predict(self.points)[0]
