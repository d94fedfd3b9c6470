"""voxtune's own search in the simulator: its journal, searcher, early stopping and ranking, imported."""

from __future__ import annotations

import contextlib
import functools
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
from optuna.search_space import IntersectionSearchSpace

from search_quality import naming
from search_quality.bench import ETA, Bench, Recipe
from search_quality.simulator import Arm, Training
from tune.driver.scheduling.rung_scheduler import RungScheduler
from tune.run.results import Run, TrialResult
from tune.run.run_dir import RunDir
from tune.search.asha import STOP
from tune.search.expected_ends import Curve, expected_ends
from tune.search.journal import Journal
from tune.search.surrogate import Surrogate
from tune.spec.kinds import encode
from tune.spec.parameter import Branch
from tune.spec.prior import NumberPrior, WeightsPrior
from tune.spec.short_trainings import adapted_if_short
from tune.spec.space import Space
from tune.spec.sweep_config import SweepConfig

CONFIRMED = 3  # recipes that are trained again to confirm the winner


class MemoryJournal(Journal):
    """voxtune's journal with Optuna's storage in memory instead of a file."""

    def __init__(self, config: SweepConfig) -> None:
        self.config = config
        self.study = optuna.create_study(direction="maximize")
        self.storage: Any = SimpleNamespace(
            sampling=contextlib.nullcontext, handed_out=lambda study_id: len(self.trials())
        )
        self.search_space = IntersectionSearchSpace(include_pruned=True)
        self._running, self._misled = {}, False


class Voxtune(Arm):
    """voxtune's own searcher, early stopping and choice of the winner, by a config."""

    def __init__(
        self,
        bench: Bench,
        seed: int,
        config: SweepConfig,
        *,
        first: tuple[Recipe, ...] = (),
        journal: Any = MemoryJournal,
    ) -> None:
        """Begin a sweep.

        Args:
            config: with its searcher and early stopping; its seed and number of trials are replaced.
            first: recipes that are tried first.
            journal: makes the journal of a config.
        """
        self.config = config.model_copy(
            update={"seed": seed, "budget": config.budget.model_copy(update={"trials": 10**6})}
        )
        self.bench, self.score = bench, self.config.objective.score
        self.journal = journal(self.config)
        self.journal.enqueue_first([{name: encode(value) for name, value in recipe.items()} for recipe in first])
        self.rungs = RungScheduler(self.journal, self.config, lambda number, report: None)
        self.rungs.default = 0 if bench.default in first[:1] else -1  # of options that TrainConfig lacks none is found
        self.readings = {
            "best": (0, naming.by_best),
            **{f"last {count}": (0, functools.partial(naming.by_last, count)) for count in (1, 3, 5)},
            **{f"window {count}": (0, functools.partial(naming.by_best_window, count)) for count in (3, 5)},
            "model": (0, self.named_by_model),
            **{f"again {times}": (times * CONFIRMED, functools.partial(self.confirmed, times)) for times in (1, 2)},
        }

    def ask(self) -> tuple[int, Recipe, int] | None:
        return *self.journal.ask(), self.bench.epochs

    def report(self, training: Training, epoch: int, score: float) -> str:
        best = int(np.argmax(training.scores))
        report: Any = {
            "epoch": epoch,
            self.score: score,
            "best_score": training.scores[best],
            "best_epoch": (best + 1) * self.bench.every,
            "end_reason": training.ended,
            **{f"val_dice_{region}": score for region in ("WT", "TC", "ET")},
        }
        self.journal.record(training.number, report)
        said = "stopped" if self.rungs.decide(training.number, report) == STOP else ""
        if said or training.ended:
            self.journal.tell(training.number)
        return said

    def ranking(self) -> list[TrialResult]:
        """Return the trials, best first."""
        trials = [TrialResult.from_frozen(frozen, self.config) for frozen in self.journal.trials()]
        return Run(RunDir(Path()), self.config, trials).ranking

    def named(self, trainings: dict[int, Training]) -> int:
        return self.ranking()[0].number

    def named_by_model(self, trainings: dict[int, Training]) -> int:
        """Name the winner by the mean of the model of the searcher bayes: lucky ones shrink towards those like them."""
        curves = [Curve(t.number, tuple(t.scores), t.whole) for t in trainings.values() if t.ended]
        ends = expected_ends(curves)
        surrogate = Surrogate(self.config.space).fit([trainings[end.number].values for end in ends], ends)
        whole = [index for index, end in enumerate(ends) if trainings[end.number].whole]
        if not surrogate.ready or not whole:
            return self.named(trainings)
        means = surrogate.means()
        return ends[max(whole, key=lambda index: means[index])].number

    def confirmed(self, times: int, trainings: dict[int, Training]) -> int:
        """Train the best three recipes again; the mean of the best scores of all their trainings names the winner."""
        means = {}
        for result in self.ranking()[:CONFIRMED]:
            training, numbers = trainings[result.number], [result.number + (k + 1) * 10**6 for k in range(times)]
            again = [self.bench.scores(training.values, self.config.seed, number).max() for number in numbers]
            means[result.number] = float(np.mean([training.best, *again]))
        return max(means, key=means.__getitem__)


def as_it_was(
    bench: Bench,
    seed: int,
    *,
    searcher: str = "tpe",
    stopping: str = "asha",
    grace: int | None = None,
    default: bool = True,
    start: bool = False,
) -> Voxtune:
    """Return voxtune as it was, or with one thing changed.

    Args:
        searcher, stopping: their types.
        grace: epoch of the first rung.
        default: whether the default recipe comes first.
        start: whether the start recipe comes next.
    """
    was = bench.was
    changed = {"type": stopping, **({"grace_period": grace} if grace else {})}
    config = was.model_copy(
        update={
            "early_stopping": was.early_stopping.model_copy(update=changed),
            "searcher": was.searcher.model_copy(update={"type": searcher}),
        }
    )
    return Voxtune(bench, seed, config, first=((bench.default,) * default + (bench.start,) * start))


def as_it_is(
    bench: Bench,
    seed: int,
    *,
    searcher: str = "",
    startup: int | None = None,
    stopping: dict[str, Any] | None = None,
    priors: bool = True,
    start: bool = True,
    misleading: bool = False,
    short: bool = False,
) -> Voxtune:
    """Return voxtune as it ships, with what it knows, or with one thing changed.

    Args:
        searcher, startup: its type and startup_trials.
        stopping: fields of early_stopping; the grace_period "third" is a third of the epochs.
        priors, start: whether the space has priors, and whether the start recipes are tried.
        misleading: whether each prior believes the other end of its range.
        short: whether sweeps of short trainings have priors and start recipes too, see searcher.prior_min_steps.
    """
    config = bench.shipped()
    if bench.trained and not short:
        config = adapted_if_short(config, bench.trained)
    changed = {**(stopping or {})}
    if changed.get("grace_period") == "third":
        changed["grace_period"] = third(bench)
    searched: dict[str, Any] = {"type": searcher} if searcher else {}
    searched |= {} if startup is None else {"startup_trials": startup}
    space = config.space if priors else config.space.without_priors()
    config = config.model_copy(
        update={
            "early_stopping": config.early_stopping.model_copy(update=changed),
            "searcher": config.searcher.model_copy(update=searched),
            "space": misled(space) if misleading else space,
        }
    )
    given = bench.given(config)
    return Voxtune(bench, seed, config, first=tuple(given if start else given[:1]))


def misled(space: Space) -> Space:
    """Return a space whose priors believe the other end of each range, and the least likely choice the likeliest."""

    def turned(branch: Branch) -> Branch:
        prior, kind = branch.prior, branch.kind
        if isinstance(prior, WeightsPrior):
            return replace(branch, prior=WeightsPrior(tuple(1 / weight for weight in prior.weights)))
        if isinstance(prior, NumberPrior):
            share = min(max(1 - kind.to_unit(prior.at), 0.0), 1 - 1e-9)
            return replace(branch, prior=NumberPrior(kind.from_unit(share), prior.confidence))
        return branch

    return Space(tuple(replace(p, branches=tuple(map(turned, p.branches))) for p in space.parameters), space.fixed)


def third(bench: Bench) -> int:
    """Return a third of the epochs, rounded up to a validation."""
    return math.ceil(bench.epochs / ETA / bench.every) * bench.every
