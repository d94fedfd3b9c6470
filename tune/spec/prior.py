"""What a user believes of the best value of an option before any trial: the `prior:` of a range in the YAML.

A prior bends the unit interval that a kind's from_unit maps to values: `from_unit(kind, u)` of an even draw u is a
draw from the prior, so that `kind.from_unit(prior.from_unit(kind, u))` is its value.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal, get_args

from trainable.core.option_errors import did_you_mean
from tune.spec.kinds import MAX_GRID, Choice, Kind

Confidence = Literal["low", "medium", "high"]
# Standard deviation as a share of the range, of the logarithm's in loguniform. Over 2.5 decades of lr: medium expects
# the best value within a factor of 2.4 of `at` in two of three cases, low within 5.6, high within 1.5.
DEVIATIONS: dict[Confidence, float] = {"low": 0.30, "medium": 0.15, "high": 0.07}
BELOW_ONE = 1 - 2**-53  # the largest float below 1
NORMAL = NormalDist()


@dataclass(frozen=True)
class NumberPrior:
    """The best value is about `at`: a normal distribution over the share of the range, cut at its ends."""

    at: float
    confidence: Confidence

    def from_unit(self, kind: Kind, u: float) -> float:
        """Return the share of the range, in [0, 1), below which the prior has a probability of u."""
        centre, deviation = kind.to_unit(self.at), DEVIATIONS[self.confidence]
        below, above = _cdf(-centre / deviation), _cdf((centre - 1) / deviation)  # what the ends cut off
        if u < 0.5:
            share = centre + deviation * NORMAL.inv_cdf(max(below + u * (1 - below - above), 1e-300))
        else:  # counted from above, where floats near 1 are too coarse for a tail
            share = centre - deviation * NORMAL.inv_cdf(max(above + (1 - u) * (1 - below - above), 1e-300))
        return min(max(share, 0.0), BELOW_ONE)

    def log_density(self, kind: Kind, value: Any) -> float:
        """Return the log of how much likelier the prior draws this value than an even draw of the range does."""
        centre, deviation, share = kind.to_unit(self.at), DEVIATIONS[self.confidence], kind.to_unit(value)
        inside = _mass(-centre / deviation, (1 - centre) / deviation)
        if kind.continuous or kind.count > MAX_GRID:
            distance = (share - centre) / deviation
            return -(distance**2) / 2 - math.log(deviation * math.sqrt(2 * math.pi) * inside)
        half = 0.5 / kind.count
        mass = _mass((share - half - centre) / deviation, (share + half - centre) / deviation)
        return math.log(mass / inside * kind.count)

    def to_dict(self) -> dict[str, Any]:
        """Return the prior as the YAML has it."""
        return {"at": self.at, "confidence": self.confidence}

    def describe(self) -> str:
        """Return the prior in words."""
        return f"about {self.at:g} ({self.confidence})"


@dataclass(frozen=True)
class WeightsPrior:
    """How likely each value of a choice is the best: weights, all > 0, in the order of the values."""

    weights: tuple[float, ...]

    def from_unit(self, kind: Kind, u: float) -> float:
        """Return the share of the range, in [0, 1), below which the prior has a probability of u."""
        ends = list(itertools.accumulate(self.weights))
        drawn = u * ends[-1]
        index = next((index for index, end in enumerate(ends) if drawn < end), len(ends) - 1)
        within = 1 - (ends[index] - drawn) / self.weights[index]
        return min((index + min(max(within, 0.0), BELOW_ONE)) / len(ends), BELOW_ONE)

    def log_density(self, kind: Kind, value: Any) -> float:
        """Return the log of how much likelier the prior draws this value than an even draw of the range does."""
        weight = self.weights[int(kind.to_unit(value) * len(self.weights))]
        return math.log(weight / sum(self.weights) * len(self.weights))

    def to_dict(self) -> dict[str, Any]:
        """Return the prior as the YAML has it."""
        return {"weights": list(self.weights)}

    def describe(self) -> str:
        """Return the prior in words."""
        return f"weights {', '.join(f'{weight:g}' for weight in self.weights)}"


Prior = NumberPrior | WeightsPrior


def read_prior(name: str, given: Any, kind: Kind, check: Callable[[Any], Any]) -> Prior:
    """Return the prior that the YAML gives.

    Args:
        name: of the option's range, for messages.
        given: the value of the key `prior`.
        kind: the range.
        check: reads a value of the option.

    Raises:
        ValueError: `given` is no prior of this range; the message says what is expected.
    """
    known = ["weights"] if isinstance(kind, Choice) else ["at", "confidence"]
    form = "{weights: [...]} of a choice" if isinstance(kind, Choice) else "{at: VALUE, confidence: medium}"
    if not isinstance(given, dict) or known[0] not in given:
        raise ValueError(f"{name}.prior is {given!r}; expected {form}")
    if unknown := [key for key in given if key not in known]:
        close = did_you_mean(str(unknown[0]), known)
        raise ValueError(f"{name}.prior.{unknown[0]} is unknown{close}; expected {form}")
    if isinstance(kind, Choice):
        return _read_weights(name, given["weights"], len(kind.values))
    at, confidence = given["at"], given.get("confidence", "medium")
    if isinstance(at, bool) or not isinstance(at, int | float):
        raise ValueError(f"{name}.prior.at is {at!r}; expected a number")
    at = check(at)
    if not kind.low <= at <= kind.high:
        advice = "put the best value that you expect into the range, or widen the range"
        raise ValueError(f"{name}.prior.at is {at!r}; expected a value of the range {kind.describe()}: {advice}")
    if confidence not in get_args(Confidence):
        close = did_you_mean(str(confidence), list(get_args(Confidence)))
        raise ValueError(f"{name}.prior.confidence is {confidence!r}{close}; expected low, medium or high")
    return NumberPrior(at, confidence)


def _read_weights(name: str, given: Any, count: int) -> WeightsPrior:
    """Return the weights of a choice of `count` values, checked."""
    message = f"{name}.prior.weights is {given!r}; expected"
    if not isinstance(given, list) or len(given) != count:
        raise ValueError(f"{message} {count} numbers, one for each value of the choice, in its order")
    if not all(isinstance(w, int | float) and not isinstance(w, bool) and 0 < w < math.inf for w in given):
        raise ValueError(f"{message} numbers > 0; leave a value that is never to be tried out of the choice")
    if sum(given) == math.inf or min(given) / sum(given) < 1e-9:
        raise ValueError(f"{message} weights of which none is less than a billionth of their sum")
    return WeightsPrior(tuple(float(weight) for weight in given))


def _mass(low: float, high: float) -> float:
    """Return the probability of a standard normal number between two."""
    if low > 0:  # the upper tail as the lower one, where floats are finer
        low, high = -high, -low
    return _cdf(high) - _cdf(low)


def _cdf(value: float) -> float:
    """Return the probability of a standard normal number below this one, exact far below 0 too."""
    return 0.5 * math.erfc(-value / math.sqrt(2))
