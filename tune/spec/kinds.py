"""The kinds of search range that a YAML may give an option: what Optuna draws, and the range's own checks.

Each kind has the same methods, so that no caller asks which kind it has:
`read` checks what the YAML gives, `suggest` draws a value from Optuna, `decode` turns Optuna's param back into the
value, `contains`, `count` (number of its values; inf of a continuous range), `grid` (all values, only both ends of a
range with more than MAX_GRID), `from_unit` (inverse CDF: maps u in [0, 1) to a value), `to_unit` (the share in [0, 1]
that from_unit maps to a value, of several the middle), `nearest` (the value itself if the range contains it, else the
value of the range that stands in for it), `describe` (the range in words), `to_list` (as the YAML has it). None but
`grid` takes longer for a range of more values.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, ClassVar, Self

from optuna.trial import BaseTrial

MAX_GRID = 1000
MAX_WHOLE_NUMBER = 2**53  # up to it each whole number is a float too, as which samplers draw it
MAX_STEPS = 10**9
Check = Callable[[Any], Any]  # returns a value as TrainConfig reads it, or raises ValueError in TrainConfig's words


@dataclass(frozen=True)
class Choice:
    """One of a list of values."""

    key: ClassVar = "choice"
    form: ClassVar = "a list of one value or more"
    continuous: ClassVar = False

    values: tuple[Any, ...]

    @classmethod
    def read(cls, name: str, given: Any, check: Check) -> Self:
        """Return the choice that the YAML gives.

        Args:
            name: of the option, for messages.
            given: the value of the key `choice`.
            check: reads a value of the option.

        Raises:
            ValueError: `given` is not a list of one or more different values that the option allows.
        """
        if not isinstance(given, list) or not given:
            raise ValueError(f"{name}.choice is {given!r}; expected {cls.form}")
        values = [check(value) for value in given]
        if any(value in values[:index] for index, value in enumerate(values)):
            raise ValueError(f"{name}.choice is {given!r}; expected each value once")
        return cls(tuple(values))

    def suggest(self, name: str, trial: BaseTrial) -> Any:
        return self.decode(trial.suggest_categorical(name, [encode(value) for value in self.values]))

    def decode(self, param: Any) -> Any:
        return json.loads(param) if isinstance(self.values[0], list) else param

    def contains(self, value: Any) -> bool:
        return value in self.values

    @property
    def count(self) -> int:
        return len(self.values)

    def grid(self) -> list[Any]:
        return list(self.values)

    def from_unit(self, u: float) -> Any:
        return self.values[int(u * len(self.values))]

    def to_unit(self, value: Any) -> float:
        return (self.values.index(value) + 0.5) / len(self.values)

    def nearest(self, value: Any) -> Any:
        """Return the value itself if it is a choice, else the first choice: choices have no order."""
        return value if self.contains(value) else self.values[0]

    def describe(self) -> str:
        return ", ".join(map(str, self.values))

    def to_list(self) -> list[Any]:
        return list(self.values)


@dataclass(frozen=True)
class Uniform:
    """A number between low and high, both included."""

    key: ClassVar = "uniform"
    form: ClassVar = "[low, high]"
    continuous: ClassVar = True

    low: float
    high: float

    @classmethod
    def read(cls, name: str, given: Any, check: Check) -> Self:
        """Return the range that the YAML gives, or raise ValueError."""
        return cls(*_low_high(cls, name, given, check))

    def suggest(self, name: str, trial: BaseTrial) -> float:
        return trial.suggest_float(name, self.low, self.high)

    def decode(self, param: float) -> float:
        return param

    def contains(self, value: float) -> bool:
        return self.low <= value <= self.high

    @property
    def count(self) -> float:
        return math.inf

    def grid(self) -> list[float]:
        return [self.low, self.high]

    def from_unit(self, u: float) -> float:
        return self.low + u * (self.high - self.low)

    def to_unit(self, value: float) -> float:
        return (self.nearest(value) - self.low) / (self.high - self.low)

    def nearest(self, value: float) -> float:
        return min(max(value, self.low), self.high)

    def describe(self) -> str:
        return f"{self.low:g} to {self.high:g}"

    def to_list(self) -> list[float]:
        return [self.low, self.high]


@dataclass(frozen=True)
class LogUniform(Uniform):
    """A number between low and high, both included, uniform in its logarithm."""

    key: ClassVar = "loguniform"

    @classmethod
    def read(cls, name: str, given: Any, check: Check) -> Self:
        """Return the range that the YAML gives, or raise ValueError."""
        low, high = _low_high(cls, name, given, check)
        if low <= 0:
            raise ValueError(f"{name}.{cls.key} is {given!r}; expected low > 0, because the range is logarithmic")
        if math.isinf(high / low):
            raise ValueError(f"{name}.{cls.key} is {given!r}; expected ends whose ratio is a number, not infinite")
        return cls(low, high)

    def suggest(self, name: str, trial: BaseTrial) -> float:
        return trial.suggest_float(name, self.low, self.high, log=True)

    def from_unit(self, u: float) -> float:
        return float(self.low * (self.high / self.low) ** u)

    def to_unit(self, value: float) -> float:
        return math.log(self.nearest(value) / self.low) / math.log(self.high / self.low)


@dataclass(frozen=True)
class RandInt:
    """A whole number between low and high, both included."""

    key: ClassVar = "randint"
    form: ClassVar = "[low, high], both included"
    continuous: ClassVar = False

    low: int
    high: int

    @classmethod
    def read(cls, name: str, given: Any, check: Check) -> Self:
        """Return the range that the YAML gives, or raise ValueError."""
        low, high = _low_high(cls, name, given, check)
        if max(-low, high) > MAX_WHOLE_NUMBER:
            raise ValueError(f"{name}.{cls.key} is {given!r}; expected numbers of at most {MAX_WHOLE_NUMBER} (2^53)")
        return cls(low, high)

    def suggest(self, name: str, trial: BaseTrial) -> int:
        return trial.suggest_int(name, self.low, self.high)

    def decode(self, param: int) -> int:
        return param

    def contains(self, value: float) -> bool:
        return self.low <= value <= self.high and value == int(value)

    @property
    def count(self) -> int:
        return self.high - self.low + 1

    def grid(self) -> list[int]:
        return list(range(self.low, self.high + 1)) if self.count <= MAX_GRID else [self.low, self.high]

    def from_unit(self, u: float) -> int:
        return self.low + int(u * self.count)

    def to_unit(self, value: float) -> float:
        return (min(max(value, self.low), self.high) - self.low + 0.5) / self.count

    def nearest(self, value: int) -> int:
        return min(max(value, self.low), self.high)

    def describe(self) -> str:
        return f"{self.low:g} to {self.high:g}"

    def to_list(self) -> list[int]:
        return [self.low, self.high]


@dataclass(frozen=True)
class QUniform:
    """A number between low and high, both included, in steps from low."""

    key: ClassVar = "quniform"
    form: ClassVar = "[low, high, step]"
    continuous: ClassVar = False

    low: float
    high: float
    step: float

    @classmethod
    def read(cls, name: str, given: Any, check: Check) -> Self:
        """Return the range that the YAML gives, or raise ValueError."""
        low, high = _low_high(cls, name, given, check, count=3)
        step = given[2]
        refused = f"{name}.{cls.key} is {given!r}; expected a step > 0 that divides high - low"
        if not 0 < step <= sys.float_info.max:  # a whole number may be more than a float holds
            raise ValueError(refused)
        if (high - low) / step > MAX_STEPS:
            raise ValueError(f"{name}.{cls.key} is {given!r}; expected at most {MAX_STEPS} steps; uniform has no steps")
        span = Decimal(str(high)) - Decimal(str(low))  # 0.9 - 0.8 as floats is less than 0.1
        if Decimal(str(step)) > span or span % Decimal(str(step)):
            raise ValueError(refused)
        return cls(low, high, float(step))

    def suggest(self, name: str, trial: BaseTrial) -> float:
        return self.decode(trial.suggest_float(name, self.low, self.high, step=self.step))

    def decode(self, param: float) -> float:
        return round(param, 12)  # 0.1 * 3 is 0.30000000000000004

    def contains(self, value: float) -> bool:
        return self.nearest(value) == value

    @property
    def count(self) -> int:
        return round((self.high - self.low) / self.step) + 1

    def at(self, index: int) -> float:
        """Return the value after `index` steps."""
        return round(self.low + index * self.step, 12)

    def grid(self) -> list[float]:
        return [self.at(index) for index in range(self.count)] if self.count <= MAX_GRID else [self.low, self.high]

    def from_unit(self, u: float) -> float:
        return self.at(int(u * self.count))

    def to_unit(self, value: float) -> float:
        return ((min(max(value, self.low), self.high) - self.low) / self.step + 0.5) / self.count

    def nearest(self, value: float) -> float:
        """Return the closest value of the range; of two that are as close, the lower one."""
        below = math.floor((min(max(value, self.low), self.high) - self.low) / self.step)
        around = range(max(0, below - 1), min(self.count, below + 3))
        return min(map(self.at, around), key=lambda other: abs(other - value))

    def describe(self) -> str:
        return f"{self.low:g} to {self.high:g}, step {self.step:g}"

    def to_list(self) -> list[float]:
        return [self.low, self.high, self.step]


Kind = Choice | Uniform | LogUniform | RandInt | QUniform
KINDS: dict[str, type[Kind]] = {kind.key: kind for kind in (Choice, Uniform, LogUniform, RandInt, QUniform)}
# The kinds that suit an option, by the type of its values; any other option is a choice.
KINDS_OF_TYPE: dict[Any, tuple[type[Kind], ...]] = {
    int: (RandInt, Choice),
    float: (Uniform, LogUniform, QUniform, Choice),
}


def all_values(kind: Kind) -> list[Any]:
    """Return all values of a range that is not continuous, however many."""
    match kind:
        case Choice():
            return list(kind.values)
        case RandInt():
            return list(range(kind.low, kind.high + 1))
        case QUniform():
            return [kind.at(index) for index in range(kind.count)]
        case _:
            raise ValueError(f"{kind} is continuous")


def encode(value: Any) -> Any:
    """Return a value as Optuna's param: lists as JSON, because Optuna's importances hash params."""
    return json.dumps(value) if isinstance(value, list) else value


def _low_high(kind: type[Kind], name: str, given: Any, check: Check, *, count: int = 2) -> tuple[Any, Any]:
    """Return the first two of `count` numbers that the YAML gives, the ends of a range, as TrainConfig reads them."""
    expected = f"{name}.{kind.key} is {given!r}; expected"
    if not isinstance(given, list) or len(given) != count:
        raise ValueError(f"{expected} {kind.form}")
    if any(isinstance(value, bool) or not isinstance(value, int | float) for value in given):
        raise ValueError(f"{expected} numbers, as {kind.form}")
    low, high = check(given[0]), check(given[1])
    if low >= high:
        raise ValueError(f"{expected} low < high; fix a single value under train:")
    return low, high
