"""Where in the range of an option trials were: how often each part was tried, where good ones and the winner lie."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from trainable.core.config import TrainConfig
from trainable.core.options import format_value
from tune.run.results import TrialResult
from tune.spec.kinds import Choice, Kind, LogUniform, QUniform, RandInt
from tune.spec.parameter import Branch, Parameter

MAX_SINGLE_VALUES = 5  # a range of whole numbers or steps with more values is counted by thirds
Side = Literal["low", "high"]

AT_EDGE = 0.05  # a number this close to an end of its range, in the range's own scale, is at its edge
WIDER = 0.25  # by how much of its length a range is widened at that end
BEST_SHARE = 0.25
PILE, PILED = 0.1, 1 / 3  # the best quarter piles up if more than a third of it lies in the last tenth of the range,
MIN_PILED = 5  # and at least so many trials: fewer are there by chance


@dataclass(frozen=True)
class Tries:
    """How often one value of an option, or one third of its range, was tried.

    label: the value or the third in words. tries: number of trials, whatever became of them. standing: mean share of
    other trials that these have beaten; None if none of them could be compared. best: the highest score of a trial that
    trained to its end; None without one.
    """

    label: str
    tries: int
    standing: float | None
    best: float | None


@dataclass(frozen=True)
class Edge:
    """The winner is at an end of an option's range, or the best trials pile up there: better values may lie beyond it.

    side: of the range. value: the winner's, None if it is not at this end. piled: lowest and highest value of those of
    the best quarter of the trials that pile up there, None if they do not. wider: the option's entry in `space:` with a
    range that goes on there.
    """

    side: Side
    value: float | None
    piled: tuple[float, float] | None
    wider: dict[str, Any] | list[dict[str, Any]]


def count_tries(
    parameter: Parameter, trials: Sequence[TrialResult], standings: Mapping[int, float]
) -> tuple[Tries, ...]:
    """Return how often each part of an option's range was tried, in the order of the range.

    standings: of the trials that could be compared, by number.
    """
    labels = part_labels(parameter.kind)
    tried = [trial for trial in trials if parameter.name in trial.values]
    by_part: list[list[TrialResult]] = [[] for _ in labels]
    for trial in tried:
        by_part[part_of(parameter.kind, trial.values[parameter.name])].append(trial)
    found = []
    for label, part in zip(labels, by_part, strict=True):
        known = [standings[trial.number] for trial in part if trial.number in standings]
        scores = [trial.score for trial in part if trial.finished and trial.score is not None]
        standing = float(np.mean(known)) if known else None
        found.append(Tries(label, len(part), standing, max(scores, default=None)))
    return tuple(found)


def part_labels(kind: Kind) -> list[str]:
    """Return the values of a range in words, or its thirds if there are many."""
    if values := single_values(kind):
        return [value_label(value) for value in values]
    ends = [value_label(at_position(kind, share)) for share in (0, 1 / 3, 2 / 3, 1)]
    return [f"{low} to {high}" for low, high in pairwise(ends)]


def part_of(kind: Kind, value: Any) -> int:
    """Return the index of the part of part_labels that a value is in."""
    if values := single_values(kind):
        return values.index(value)
    return min(2, int(3 * position(kind, value)))


def single_values(kind: Kind) -> list[Any]:
    """Return the values of a range that has only a few, or is a choice; [] of any other."""
    return kind.grid() if isinstance(kind, Choice) or kind.count <= MAX_SINGLE_VALUES else []


def value_label(value: Any) -> str:
    """Return a value as short text, a number with 2 significant digits."""
    if isinstance(value, list):
        return ":".join(value_label(item) for item in value)
    return f"{value:.2g}" if isinstance(value, float) else format_value(value)


def setting_text(value: Any) -> str:
    """Return a value of study.yaml on one line; a hash is cut to 12 digits."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {setting_text(part)}" for key, part in value.items())
    if isinstance(value, list):
        return "[" + ", ".join(map(value_label, value)) + "]"
    text = "-" if value is None else format_value(value)
    return text[:12] if len(text) >= 32 and " " not in text else text


def position(kind: Kind, value: float) -> float:
    """Return where a number is in its range, from 0 to 1, in the range's own scale."""
    assert not isinstance(kind, Choice)
    if isinstance(kind, LogUniform):
        return math.log(value / kind.low) / math.log(kind.high / kind.low)
    return (value - kind.low) / (kind.high - kind.low)


def at_position(kind: Kind, share: float) -> float:
    """Return the number at a position, which may lie outside the range; the inverse of `position`."""
    assert not isinstance(kind, Choice)
    if isinstance(kind, LogUniform):
        return float(kind.low * (kind.high / kind.low) ** share)
    value = kind.low + share * (kind.high - kind.low)
    return round(value) if isinstance(kind, RandInt) else value


def best_range(parameter: Parameter, values: Sequence[Any], standings: NDArray[np.float64]) -> tuple[Any, ...]:
    """Return where the best quarter of trials lies: ends of the middle 80 % of a number, or the value of most of them.

    Args:
        values: of the option in each trial.
        standings: of these trials, (trials,).
    """
    taken, _ = split_best(values, standings)
    if isinstance(parameter.kind, Choice):
        return (max(taken, key=taken.count),)
    low, high = np.quantile(taken, [0.1, 0.9], method="nearest")
    return (low.item(), high.item())


def split_best(values: Sequence[Any], standings: NDArray[np.float64]) -> tuple[list[Any], list[Any]]:
    """Return the values of the best quarter of trials, at least one of them, and those of the others."""
    order = np.argsort(-standings, kind="stable")
    count = max(1, round(BEST_SHARE * len(values)))
    return [values[place] for place in order[:count]], [values[place] for place in order[count:]]


def find_edge(
    parameter: Parameter, branch: Branch, winner: float | None, values: Sequence[float], standings: NDArray[np.float64]
) -> Edge | None:
    """Return the end of a range at which the winner is or the best trials pile up.

    Args:
        parameter: the option.
        branch: its range that applies to these trials.
        winner: its value, None without one; it tells more than the others.
        values: of the option in each trial.
        standings: of these trials, (trials,).

    Returns:
        None if there is no such end, or the option allows nothing beyond it.
    """
    kind = branch.kind
    if isinstance(kind, Choice):
        return None
    where = 0.5 if winner is None else position(kind, winner)
    at_end: Side | None = "low" if where <= AT_EDGE else "high" if where >= 1 - AT_EDGE else None
    piles = find_piles(kind, values, standings)
    side = at_end or next(iter(piles), None)
    if side is None or (wider := widen(parameter.name, kind, side)) == kind.to_list():
        return None
    return Edge(side, winner if at_end else None, piles.get(side), parameter.entry_with(branch, wider))


def find_piles(kind: Kind, values: Sequence[float], standings: NDArray[np.float64]) -> dict[Side, tuple[float, float]]:
    """Return the ends of a range at which the best quarter of trials piles up, and its lowest and highest value there.

    It does so only if it lies there more often than the other trials: a searcher may try an end often, and of a few
    values each has many trials.
    """
    if single_values(kind) or len(values) < 1 / BEST_SHARE:
        return {}
    best, others = split_best(values, standings)
    found: dict[Side, tuple[float, float]] = {}
    for side in ("low", "high"):
        there, too = ([value for value in part if in_pile(kind, value, side)] for part in (best, others))
        if len(there) >= max(MIN_PILED, PILED * len(best)) and len(there) / len(best) > len(too) / len(others):
            found[side] = (min(there), max(there))
    return found


def in_pile(kind: Kind, value: float, side: Side) -> bool:
    """Return whether a number is in the last tenth of its range at a side."""
    where = position(kind, value)
    return where <= PILE if side == "low" else where >= 1 - PILE


def widen(name: str, kind: Kind, side: Side) -> list[float]:
    """Return the range of an option, as the YAML has it, widened at one side as far as the option allows."""
    ends, end, sign = list[float](kind.to_list()), int(side == "high"), 1 if side == "high" else -1
    if isinstance(kind, QUniform):
        steps = max(1, math.ceil(WIDER * (kind.count - 1)))
        candidates = [round(ends[end] + sign * step * kind.step, 12) for step in range(steps, 0, -1)]
    else:
        target = at_position(kind, -WIDER if side == "low" else 1 + WIDER)
        digits = 1 if isinstance(kind, LogUniform) else 2
        rounded = target if isinstance(kind, RandInt) else float(f"{target:.{digits}g}")
        candidates = [rounded, *option_limits(name, sign)]
    beyond = [value for value in candidates if sign * (value - ends[end]) > 0]
    ends[end] = next((value for value in beyond if allows(name, value)), ends[end])
    return ends


def option_limits(name: str, sign: int) -> list[float]:
    """Return the highest value that an option allows (sign 1) or the lowest (sign -1); [] without such a limit."""
    attribute = "le" if sign > 0 else "ge"
    return [getattr(item, attribute) for item in TrainConfig.model_fields[name].metadata if hasattr(item, attribute)]


def allows(name: str, value: float) -> bool:
    """Return whether an option's own limits allow a value."""
    from pydantic import TypeAdapter, ValidationError

    field = TrainConfig.model_fields[name]
    try:
        TypeAdapter(field.rebuild_annotation()).validate_python(value)
    except ValidationError:
        return False
    return True
