"""A sweep in simulated time: a heap of the moments at which trials report; every epoch is as long as another."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from search_quality.bench import Bench, Recipe


@dataclass
class Training:
    """One trial, as the simulator knows it.

    final: what its recipe is worth. until: the epoch up to which the arm wants it for now. ended: "epochs", "patience",
    "stopped", or "paused", after which it may go on; "" while it runs.
    """

    number: int
    values: Recipe
    all_scores: NDArray[np.float64]
    final: float
    until: int
    epoch: int = 0
    scores: list[float] = field(default_factory=list)
    ended: str = ""

    @property
    def whole(self) -> bool:
        """Whether it trained to its end."""
        return self.ended in ("epochs", "patience")

    @property
    def best(self) -> float:
        """Its best score so far."""
        return max(self.scores, default=-math.inf)


Named = Callable[[dict[int, Training]], int]


class Arm:
    """A search: proposes recipes, gets their scores, stops or pauses trainings, and names the best in the end.

    readings: other ways to name the winner of the same sweep, by name; each has how many trainings of the budget it
    needs after the sweep.
    """

    readings: dict[str, tuple[float, Named]]

    def ask(self) -> tuple[int, Recipe, int] | None:
        """Return number, values and last epoch of the next training; None to wait.

        A training that was paused has its number again.
        """
        raise NotImplementedError

    def report(self, training: Training, epoch: int, score: float) -> str:
        """Return what becomes of a training: "", "stopped" or "paused". Its last report comes with training.ended."""
        raise NotImplementedError

    def named(self, trainings: dict[int, Training]) -> int:
        """Return the number of the best training."""
        raise NotImplementedError


Reached = dict[str, Any]
Mark = tuple[float, str, Named]  # budget in whole trainings at which a winner is named, its label, by what


def sweep(bench: Bench, arm: Arm, seed: int, workers: int, budgets: list[int]) -> dict[str, Reached]:
    """Run an arm until the budgets are spent, in whole trainings; return what it had reached at each.

    Trials that run at that moment are cut off. Labels: "16", and "16 READING" for each other way to name the winner.
    """
    trainings: dict[int, Training] = {}
    running: list[tuple[int, int]] = []  # (time of the next report, number)
    now = used = 0
    marks: list[Mark] = [(budget, f"{budget}", arm.named) for budget in budgets]
    for name, (kept, named) in getattr(arm, "readings", {}).items():
        marks += [(budget - kept, f"{budget} {name}", named) for budget in budgets if budget > kept]
    marks.sort(key=lambda mark: mark[0])
    found: dict[str, Reached] = {}
    while marks:
        while len(running) < workers and (asked := arm.ask()) is not None:
            start_training(bench, trainings, *asked, seed)
            heapq.heappush(running, (now + bench.every, asked[0]))
        if not running:
            break
        now, number = heapq.heappop(running)
        used += bench.every
        training = trainings[number]
        advance(bench, arm, training)
        if not training.ended:
            heapq.heappush(running, (now + bench.every, number))
        while marks and used >= marks[0][0] * bench.epochs:
            _, mark, named = marks.pop(0)
            found[mark] = reached_so_far(bench, named, trainings, used, now)
    for _, mark, named in marks:  # the arm has ended of itself
        found[mark] = reached_so_far(bench, named, trainings, used, now)
    return found


def start_training(
    bench: Bench, trainings: dict[int, Training], number: int, values: Recipe, until: int, seed: int
) -> None:
    """Add a training that the arm has asked for, or let a paused one go on."""
    if number not in trainings:
        scores = bench.scores(values, seed, number)
        trainings[number] = Training(number, values, scores, bench.final(values), until)
    trainings[number].until, trainings[number].ended = until, ""


def advance(bench: Bench, arm: Arm, training: Training) -> None:
    """Train up to the next validation, and let the arm decide."""
    training.epoch += bench.every
    score = float(training.all_scores[training.epoch // bench.every - 1])
    training.scores.append(score)
    without_gain = len(training.scores) - 1 - int(np.argmax(training.scores))
    if training.epoch >= bench.epochs:
        training.ended = "epochs"
    elif bench.patience and without_gain >= bench.patience:
        training.ended = "patience"
    decided = arm.report(training, training.epoch, score)
    training.ended = training.ended or decided


def reached_so_far(bench: Bench, named: Named, trainings: dict[int, Training], used: int, now: int) -> Reached:
    """Return what an arm has reached by now, as numbers; docs/search.md says what each means."""
    seen = {number: training for number, training in trainings.items() if training.scores}
    winner = seen[named(seen)]
    finals = sorted((training.final for training in seen.values()), reverse=True)
    top = finals[math.ceil(len(finals) / 10) - 1]
    stopped = [training for training in seen.values() if training.ended in ("stopped", "paused")]
    lost = sum(training.final >= top for training in stopped)
    kept = max((training.final for training in seen.values() if training.whole), default=math.nan)
    return {
        "regret": (bench.best - winner.final) * bench.unit,
        "tried": (bench.best - finals[0]) * bench.unit,
        "kept": (bench.best - kept) * bench.unit,
        "below": winner.final < bench.final(bench.default) - 1e-9,
        "used": used / bench.epochs,
        "began": len(seen),
        "whole": sum(training.whole for training in seen.values()),
        "killed": lost / len(stopped) if stopped else None,
        "top_killed": lost / sum(final >= top for final in finals),
        "time": now,
    }
