"""A searched option: its ranges, when each applies, and what is believed of the best value."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cached_property
from typing import Any

from tune.spec.kinds import Choice, Kind, QUniform, RandInt
from tune.spec.prior import Prior


@dataclass(frozen=True)
class Branch:
    """One range of a searched option.

    when: it applies only if each of these options has one of the values given here. prior: what is believed of the best
    value before any trial; None for nothing.
    """

    kind: Kind
    when: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    prior: Prior | None = None

    def applies(self, values: dict[str, Any]) -> bool:
        """Return whether all conditions hold for these values; a condition on an option without a value does not."""
        return all(name in values and values[name] in allowed for name, allowed in self.when.items())

    def from_unit(self, u: float, *, use_prior: bool) -> Any:
        """Return the value for u in [0, 1): a draw from the range, or from the prior if it has one, if u is even."""
        return self.kind.from_unit(self.prior.from_unit(self.kind, u) if use_prior and self.prior else u)

    def condition(self) -> str:
        """Return the conditions in words; "" if there are none."""
        return _condition(self.when)

    def describe(self) -> str:
        """Return the range in words, with the conditions under which it applies."""
        return self.kind.describe() + (f" if {self.condition()}" if self.when else "")

    def to_dict(self) -> dict[str, Any]:
        """Return the range as the YAML has it."""
        entry: dict[str, Any] = {self.kind.key: self.kind.to_list()}
        if self.when:
            entry["when"] = {name: list(allowed) for name, allowed in self.when.items()}
        return entry | ({"prior": self.prior.to_dict()} if self.prior else {})


@dataclass(frozen=True)
class Parameter:
    """A searched option.

    branches: its ranges, all of one kind, of which at most one applies to a recipe. always: whether one of several
    applies to every recipe of its space.
    """

    name: str
    branches: tuple[Branch, ...]
    always: bool = False

    def branch(self, values: dict[str, Any]) -> Branch | None:
        """Return the range that applies to these values of other options; None if none does."""
        return next((branch for branch in self.branches if branch.applies(values)), None)

    def active(self, values: dict[str, Any]) -> bool:
        """Return whether the option is drawn, given these values of others."""
        return self.branch(values) is not None

    @cached_property
    def kind(self) -> Kind:
        """The range that covers those of all branches."""
        return covering_range([branch.kind for branch in self.branches])

    @cached_property
    def when(self) -> dict[str, tuple[Any, ...]]:
        """What must hold for the option to be drawn at all.

        Of several branches these are the options that all name, each with the values of all; none if one of them always
        applies.
        """
        first, *others = self.branches
        if self.always:
            return {}
        return {
            name: tuple(dict.fromkeys(value for branch in self.branches for value in branch.when[name]))
            for name in first.when
            if all(name in branch.when for branch in others)
        }

    @property
    def depends_on(self) -> set[str]:
        """The options that a condition of any branch names."""
        return {name for branch in self.branches for name in branch.when}

    @property
    def varies(self) -> bool:
        """Whether the range depends on other options."""
        return any(branch.kind != self.kind for branch in self.branches)

    def condition(self) -> str:
        """Return `when` in words; "" if there are no conditions."""
        return _condition(self.when)

    def to_dict(self) -> dict[str, Any] | list[dict[str, Any]]:
        """Return the option's entry in the section `space:` of a YAML."""
        entries = [branch.to_dict() for branch in self.branches]
        return entries[0] if len(entries) == 1 else entries

    def entry_with(self, changed: Branch, ends: list[float]) -> dict[str, Any] | list[dict[str, Any]]:
        """Return to_dict(), with other ends of one of the ranges."""
        entries = [b.to_dict() | ({b.kind.key: ends} if b is changed else {}) for b in self.branches]
        return entries[0] if len(entries) == 1 else entries


def _condition(when: dict[str, tuple[Any, ...]]) -> str:
    """Return conditions in words."""
    return " and ".join(f"{name} = {' or '.join(map(str, allowed))}" for name, allowed in when.items())


def covering_range(kinds: Sequence[Kind]) -> Kind:
    """Return the range that contains each of these, which are of one class; choices among them have the same values."""
    first = kinds[0]
    if isinstance(first, Choice) or all(kind == first for kind in kinds):
        return first
    low, high = min(kind.to_list()[0] for kind in kinds), max(kind.to_list()[1] for kind in kinds)
    if not isinstance(first, QUniform):
        return RandInt(int(low), int(high)) if isinstance(first, RandInt) else type(first)(low, high)
    numbers = [[Decimal(str(number)) for number in kind.to_list()] for kind in kinds]
    parts = [part for start, _, step in numbers for part in (start - Decimal(str(low)), step)]
    digits = max(0, *(-int(part.normalize().as_tuple().exponent) for part in parts))
    return QUniform(low, high, math.gcd(*(int(part.scaleb(digits)) for part in parts)) / 10**digits)
