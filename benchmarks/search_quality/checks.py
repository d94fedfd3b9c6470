"""The simulator and the arms against known answers."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from search_quality.arms import ARMS, AS_IT_WAS
from search_quality.bench import Bench, Recipe, maximise
from search_quality.simulator import Arm, Training, sweep
from search_quality.synthetic import Line
from search_quality.unet import UNet, all_recipes
from search_quality.voxtune_arms import Voxtune
from tune.search.journal import Journal


class Oracle(Arm):
    """Knows the best recipe."""

    def __init__(self, bench: UNet) -> None:
        self.bench, self.count = bench, 0

    def ask(self) -> tuple[int, Recipe, int] | None:
        self.count += 1
        return self.count - 1, self.bench.optimum, self.bench.epochs

    def report(self, training: Training, epoch: int, score: float) -> str:
        return ""

    def named(self, trainings: dict[int, Training]) -> int:
        return max(trainings.values(), key=lambda training: training.best).number


def check_oracle() -> str:
    """Check that an arm that knows the best recipe has regret 0, and the epochs and the time that it must have."""
    bench = UNet(0)
    for workers in (1, 4):
        for mark, reached in sweep(bench, Oracle(bench), 0, workers, [8, 16]).items():
            assert abs(reached["regret"]) < 1e-9, reached
            assert reached["used"] == reached["whole"] == float(mark), reached
            assert reached["time"] == float(mark) * bench.epochs / workers, reached
    return "an arm that knows the best recipe has regret 0, and epochs and time as they must be"


def check_draws(seeds: int = 100) -> str:
    """Check that the winner of N random draws is the largest of them."""
    line, random = Line(0), ARMS["random, no stopping"]
    for count in (8, 64):
        for seed in range(seeds):
            best = 1 - sweep(line, random(line, seed), seed, 4, [count])[f"{count}"]["regret"] / 100
            drawn = np.random.RandomState(seed).uniform(size=count).max()
            assert abs(best - drawn) < 1e-12, (best, drawn)
    return f"the winner of 8 and of 64 is the largest of numpy's draws in each of {seeds} seeds"


def check_stopping(seeds: int = 5) -> str:
    """Check that no rule stops the best where scores are constant and without noise."""
    line = Line(0)
    for name in ("random + ASHA (Ray)", AS_IT_WAS, "was, one rung at R/3"):
        for seed in range(seeds):
            reached = sweep(line, ARMS[name](line, seed), seed, 1, [8])["8"]
            assert reached["regret"] == reached["tried"], (name, seed, reached)
    return "where scores are constant and without noise, no rule stops the best, and it is named"


def check_journal() -> str:
    """Check that a sweep is the same with its journal on disk."""
    bench, both = UNet(3), []
    for in_memory in (True, False):
        with tempfile.TemporaryDirectory() as folder:
            extra = {} if in_memory else {"journal": functools.partial(Journal, Path(folder))}
            arm = Voxtune(bench, 3, bench.was, first=(bench.default,), **extra)
            reached = sweep(bench, arm, 3, 4, [8])
            both.append(  # repr, as NaN is not equal to NaN
                (repr(reached), [(t.number, t.state, t.params, t.value, t.user_attrs) for t in arm.journal.trials()])
            )
    assert both[0] == both[1]
    return f"the {len(both[0][1])} trials of a sweep are the same with the journal on disk"


def check_best(seeds: int = 2) -> str:
    """Check that no search finds a recipe that is better than the best of a surface."""
    for seed in range(seeds):
        for far in (False, True):
            bench: Bench = UNet(seed, far=far)
            assert isinstance(bench, UNet)
            known = (bench.optimum, bench.start)
            found = maximise(all_recipes(), bench.final, seed, known=known, draws=20, starts=1)
            assert bench.final(found) - bench.best < 1e-4, (seed, far, found)
    return "no search finds a recipe that is better than a surface's best by 0.01 Dice points"


def run_checks() -> Iterator[str]:
    """Yield a line per check; raises AssertionError where one fails."""
    for check in (check_oracle, check_draws, check_stopping, check_journal, check_best):
        yield f"check: {check()}"
