"""Is one recipe better than another? The difference of their scores, with an interval over trainings and cases.

A recipe's score varies twice: trained again it is another model, and on other cases that model scores differently. A
verdict must survive both, so both are drawn again (a two-level bootstrap). With few trainings a bootstrap spreads too
little: its draws are rescaled to the unbiased variance, and widened as Student's t is for the few degrees of freedom of
that variance (Welch 1947, Satterthwaite 1946). docs/confirm.md explains each number, and
benchmarks/confirm_calibration.py measures that the intervals hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
# Scores of one recipe: per fold (trainings, cases), each training on the cases of that fold; one array without folds.
Folds = Sequence[Floats]
Words = Literal["better", "worse", "not shown"]

MIN_FOLDS = 3  # of one training each, from whose differences a variance is estimated
MOST_TRAININGS, MOST_CASES = 1_000, 100_000  # to add; who needs more than this will not know
ROUNDING = 1e-12  # smaller differences are none
BLOCK = 1 << 16  # numbers drawn at a time: larger ones leave the processor's cache


@dataclass(frozen=True)
class Comparison:
    """The difference between the mean scores of two recipes, two models or two ways to predict.

    Attributes:
        difference: mean score of the first minus that of the second.
        low: lower end of its confidence interval; NaN if it cannot be estimated, as with one training per recipe.
        high: upper end; NaN likewise.
        probability: that the first is better; NaN likewise.
        more_trainings: trainings to add to each recipe until an interval about this difference would exclude 0; 0 if it
            does so already, None if no number would suffice.
        more_cases: the same for cases.
        confidence: of the interval.
    """

    difference: float
    low: float
    high: float
    probability: float
    more_trainings: int | None
    more_cases: int | None
    confidence: float = 0.95

    @property
    def dice_low(self) -> float:
        """The lower end to print if the scores are Dice: no difference of these is beyond -1."""
        return max(self.low, -1.0)

    @property
    def dice_high(self) -> float:
        """The upper end to print if the scores are Dice: no difference of these is beyond 1."""
        return min(self.high, 1.0)

    @property
    def verdict(self) -> Words:
        """What the interval says: "better" or "worse" if it excludes 0, else "not shown"."""
        return "better" if self.low > 0 else "worse" if self.high < 0 else "not shown"


@dataclass(frozen=True)
class _Noise:
    """How much scores vary, by cause; of two values, the first is of the first recipe.

    Attributes:
        trainings: per fold.
        cases: over all folds.
        folds: 1 without folds.
        training: variance of the score of one training, or of one in each fold, on these cases.
        residual: variance of a case's score beyond the effects of its training and of the case. It averages out over
            trainings and over cases, and is part of both other variances.
        case: variance of a case's difference, which is between its means over trainings.
    """

    trainings: tuple[int, int]
    cases: int
    folds: int
    training: tuple[float, float]
    residual: tuple[float, float]
    case: float

    def variance(self, more_trainings: int = 0, more_cases: int = 0) -> tuple[float, float]:
        """Return the variance of the difference and its degrees of freedom, with so many more of each.

        The variance by trainings plus that by cases, less what both contain, but not below the larger of the two.
        """
        cases, later = self.cases + more_cases, [n + more_trainings for n in self.trainings]
        df_case = max(cases - self.folds, 1)
        by_training, shared = [], []
        for n, training, residual in zip(later, self.training, self.residual, strict=True):
            lasting = max(training - residual / self.cases, 0)  # the rest averages out over cases
            by_training.append((lasting + (training - lasting) * self.cases / cases) / n)
            shared.append(residual / n / cases)
        averaged = sum(e / n for e, n in zip(self.residual, self.trainings, strict=True))
        lasting = max(self.case - averaged, 0)  # the rest averages out over trainings
        by_case = (lasting + (self.case - lasting) * (sum(shared) * cases / averaged if averaged else 1)) / cases
        if later == [1, 1]:  # one training per fold: the variance is that between folds
            return sum(by_training) + by_case, self.folds - 1
        variance = max(sum(by_training) + by_case - sum(shared), sum(by_training), by_case)
        squares = by_case**2 / df_case
        for part, twice, n in zip(by_training, shared, later, strict=True):
            squares += part**2 / (self.folds * (n - 1)) + twice**2 / ((n - 1) * df_case)
        if squares == 0:
            return variance, np.inf
        fewest = min(df_case, self.folds * (min(later) - 1))  # what is subtracted could give less, which has no meaning
        return variance, max(variance**2 / squares, fewest)

    def excludes_zero(self, difference: float, level: float, more_trainings: int, more_cases: int) -> bool:
        """Whether an interval about this difference excludes 0; level: (1 + confidence) / 2."""
        from scipy.special import stdtrit  # here: each verb would wait for it

        variance, df = self.variance(more_trainings, more_cases)
        return bool(abs(difference) > stdtrit(df, level) * np.sqrt(variance))


def compare_recipes(
    first: Folds, second: Folds, *, confidence: float = 0.95, draws: int = 10_000, seed: int = 0
) -> Comparison:
    """Compare two recipes by the scores of their trainings on the same cases, paired by case.

    Args:
        first: per fold (trainings, cases); one array without folds. Higher is better.
        second: the same folds and cases; the number of trainings may differ.
        confidence: of the interval, two-sided.
        draws: of trainings and cases.
        seed: of the draws; the same seed gives the same interval.

    Returns:
        The comparison. Without an interval if a recipe has one training per fold and there are fewer than three folds,
        or if no fold has two cases: then nothing is known about the noise.
    """
    difference = _mean(first) - _mean(second)
    noise = _estimate_noise(first, second)
    if noise is None:
        return Comparison(difference, np.nan, np.nan, np.nan, None, None, confidence)
    rng = np.random.default_rng(seed)
    redrawn = _redraw(first, second, draws, rng, redraw_folds=noise.trainings == (1, 1))
    spread = _spread(redrawn - difference, *noise.variance(), rng)
    return _conclude(difference, spread, noise, confidence)


def compare_predictions(
    first: Floats, second: Floats, *, confidence: float = 0.95, draws: int = 10_000, seed: int = 0
) -> Comparison:
    """Compare two models, or two ways to predict, by their scores of the same cases; only cases are drawn again.

    It says nothing about what another training of the same recipe would score.

    Args:
        first: (cases,), higher is better.
        second: (cases,), in the same order.
        confidence: of the interval, two-sided.
        draws: of cases.
        seed: of the draws.

    Returns:
        The comparison, without an interval if there is one case; more_trainings is None.
    """
    differences = np.asarray(first, float) - np.asarray(second, float)
    difference, cases = float(differences.mean()), len(differences)
    if cases < 2:
        return Comparison(difference, np.nan, np.nan, np.nan, None, None, confidence)
    rng = np.random.default_rng(seed)
    redrawn = np.concatenate([weights @ differences for weights in _weights(cases, draws, rng)])
    # No variance of trainings: the first values are there to have a number in every place.
    noise = _Noise((2, 2), cases, 1, (0.0, 0.0), (0.0, 0.0), float(differences.var(ddof=1)))
    found = _conclude(difference, _spread(redrawn - difference, *noise.variance(), rng), noise, confidence)
    return replace(found, more_trainings=None)


def _mean(folds: Folds) -> float:
    """Return the mean score of a recipe: over the trainings of each fold, then over cases."""
    return float(np.concatenate([scores.mean(0) for scores in folds]).mean())


def _estimate_noise(first: Folds, second: Folds) -> _Noise | None:
    """Return the unbiased variances, None if the scores are too few to estimate them."""
    by_fold = [a.mean(0) - b.mean(0) for a, b in zip(first, second, strict=True)]
    sizes = np.array([len(fold) for fold in by_fold])
    cases, folds = int(sizes.sum()), len(sizes)
    df = cases - folds
    case = sum(float(((fold - fold.mean()) ** 2).sum()) for fold in by_fold) / df if df else 0.0
    trainings = (min(len(scores) for scores in first), min(len(scores) for scores in second))
    if min(trainings) > 1 and df:
        (training_a, residual_a), (training_b, residual_b) = _vary(first), _vary(second)
        return _Noise(trainings, cases, folds, (training_a, training_b), (residual_a, residual_b), case)
    if folds < MIN_FOLDS:
        return None
    means, weights = np.array([fold.mean() for fold in by_fold]), sizes / cases
    between = float((weights**2 * (means - weights @ means) ** 2).sum()) * folds / (folds - 1)
    half = (between - case / cases) / 2
    return _Noise((1, 1), cases, folds, (half, half), (0.0, 0.0), case)


def _vary(recipe: Folds) -> tuple[float, float]:
    """Return the variance of the score of one training in each fold, and the residual one, of one recipe."""
    cases = sum(scores.shape[1] for scores in recipe)
    training = residual = 0.0
    df = 0
    for scores in recipe:
        n, c = scores.shape
        training += (c / cases) ** 2 * float(scores.mean(1).var(ddof=1))
        beyond = scores - scores.mean(1, keepdims=True) - scores.mean(0) + scores.mean()
        residual += float((beyond**2).sum())
        df += (n - 1) * (c - 1)
    return training, residual / df


def _weights(count: int, draws: int, rng: np.random.Generator) -> Iterator[Floats]:
    """Yield blocks (some draws, count) of the share of each item when `count` items are drawn with replacement."""
    size = max(BLOCK // count, 1)
    for start in range(0, draws, size):
        rows = min(size, draws - start)
        drawn = rng.integers(count, size=(rows, count)) + count * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count) / count


def _all_weights(count: int, draws: int, rng: np.random.Generator) -> Floats:
    """Return the blocks of _weights as one, (draws, count)."""
    return np.concatenate(list(_weights(count, draws, rng)))


def _redraw(first: Folds, second: Folds, draws: int, rng: np.random.Generator, *, redraw_folds: bool) -> Floats:
    """Return the difference of two recipes for each draw of their trainings, and of cases for both at once.

    Args:
        redraw_folds: draw the folds too, since with one training each they are what is repeated.
    """
    cases = sum(scores.shape[1] for scores in first)
    shares = np.array([scores.shape[1] / cases for scores in first])
    weight = shares * (_all_weights(len(shares), draws, rng) * len(shares) if redraw_folds else np.ones((draws, 1)))
    total = np.zeros(draws)
    for fold, (a, b) in enumerate(zip(first, second, strict=True)):
        first_drawn, second_drawn = (_all_weights(len(scores), draws, rng) for scores in (a, b))
        done = 0
        for weights in _weights(a.shape[1], draws, rng):
            rows = slice(done, done + len(weights))
            difference = first_drawn[rows] @ a - second_drawn[rows] @ b
            total[rows] += weight[rows, fold] * (difference * weights).sum(1)
            done = rows.stop
    return total


def _spread(errors: Floats, variance: float, df: float, rng: np.random.Generator) -> Floats:
    """Return errors of a difference with the bootstrap's shape, this variance and Student's tails.

    Args:
        errors: differences of the bootstrap's draws minus the difference itself, which is their expected value.
        variance: of the difference, unbiased.
        df: degrees of freedom of that variance.
        rng: of the tails.
    """
    deviation = float(np.sqrt((errors**2).mean()))
    if deviation < ROUNDING or variance == 0:
        return np.zeros_like(errors)
    tails = df / rng.chisquare(df, len(errors)) if np.isfinite(df) else 1.0
    return errors / deviation * np.sqrt(variance * tails)


def _conclude(difference: float, spread: Floats, noise: _Noise, confidence: float) -> Comparison:
    """Return the comparison for a difference and draws of its error."""
    values = difference + spread
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    ties = np.abs(values) < ROUNDING
    probability = float(((values > 0) & ~ties).mean() + ties.mean() / 2)
    level = (1 + confidence) / 2

    def tells(trainings: int, cases: int) -> bool:
        return noise.excludes_zero(difference, level, trainings, cases)

    shown = low > 0 or high < 0
    more_trainings = 0 if shown else _first(lambda more: tells(more, 0), MOST_TRAININGS)
    more_cases = 0 if shown else _first(lambda more: tells(0, more), MOST_CASES)
    return Comparison(difference, float(low), float(high), probability, more_trainings, more_cases, confidence)


def _first(holds: Callable[[int], bool], most: int) -> int | None:
    """Return the lowest number from 1 on for which a condition holds that then holds for all higher ones, or None."""
    if not holds(most):
        return None
    low, high = 0, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
