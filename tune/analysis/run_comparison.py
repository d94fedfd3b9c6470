"""Compares runs: do their scores mean the same, which was ahead after how many GPU hours, and what each has found."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from optuna.trial import TrialState

from trainable.core.idle_options import why_idle
from trainable.core.options import option_names, to_dict
from tune.analysis.importance import Importances, importances
from tune.analysis.trial_comparison import differing
from tune.run.events import Event, EventKind, end_times, read_events
from tune.run.import_trials import comparability_key
from tune.run.results import Run, TrialResult

SHARES = (0.25, 0.5, 0.75, 1.0)  # of the hours of the shortest run, after which the runs are compared
SPAN_ENDS = (EventKind.TRIAL_STARTED, EventKind.TRIAL_RETRIED, EventKind.TRIAL_PAUSED, EventKind.TRIAL_ENDED)


@dataclass(frozen=True)
class Milestone:
    """The runs after the same effort.

    hours: GPU hours, or hours of training if a run has no GPU. best: by run, the best score of a trial that had trained
    to its end by then; None before the first one. ahead: index of the run with the best one; None if they are equal,
    none has one, or scores cannot be compared.
    """

    hours: float
    best: tuple[float | None, ...]
    ahead: int | None


@dataclass(frozen=True)
class RunComparison:
    """Runs side by side.

    meaning: what their scores depend on and differs (data, split, metric, epochs, ...), by its place in study.yaml,
    with the value in each run; their scores can be compared only if it is empty. search: what differs in how they
    searched: early stopping, space, searcher. on_gpu: whether hours are GPU hours. hours: of each run in all.
    milestones: by rising effort, the last at the end of the shortest run. recipes: the options in which the winners
    differ, with the value in each, None where it cannot act; empty if a run has no winner.
    """

    runs: tuple[Run, ...]
    meaning: dict[str, tuple[Any, ...]]
    search: dict[str, tuple[Any, ...]]
    on_gpu: bool
    hours: tuple[float, ...]
    milestones: tuple[Milestone, ...]
    recipes: dict[str, tuple[Any, ...]]
    importances: tuple[Importances, ...]

    @property
    def comparable(self) -> bool:
        """Whether their scores mean the same."""
        return not self.meaning

    @property
    def winners(self) -> list[TrialResult | None]:
        """The best trial of each run, None while none has a score."""
        return [run.ranking[0] if run.ranking else None for run in self.runs]

    @property
    def names(self) -> list[str]:
        """What each run is called: its folder's name, or its path if two have the same name."""
        names = [run.folder.resolve().name for run in self.runs]
        return names if len(set(names)) == len(names) else [str(run.folder) for run in self.runs]


def compare_runs(runs: Sequence[Run]) -> RunComparison:
    """Compare two runs or more."""
    keys = [comparability_key(run.config) for run in runs]
    different = {name: values for name, values in differing(keys).items() if name != "study.seed"}  # split is compared
    meaning = {name: values for name, values in different.items() if not name.startswith("early_stopping.")}
    search = {name: values for name, values in different.items() if name not in meaning}
    on_gpu = all(run.config.resources.gpu_share for run in runs)
    curves = [best_so_far(run, on_gpu=on_gpu) for run in runs]
    hours = tuple(curve[-1][0] if curve else 0.0 for curve in curves)
    return RunComparison(
        runs=tuple(runs),
        meaning=meaning,
        search=search | differing([search_facts(run) for run in runs]),
        on_gpu=on_gpu,
        hours=hours,
        milestones=tuple(milestone(curves, share * min(hours), comparable=not meaning) for share in SHARES),
        recipes=differing([winner_recipe(run) for run in runs]) if all(run.ranking for run in runs) else {},
        importances=tuple(importances(run) for run in runs),
    )


def search_facts(run: Run) -> dict[str, Any]:
    """Return how a run searched: its searcher, number of trials and ranges."""
    config = run.config
    ranges = {f"space.{name}": entry for name, entry in config.space.to_dict().items()}
    return {"searcher.type": config.searcher.type, "study.trials": config.budget.trials, **ranges}


def winner_recipe(run: Run) -> dict[str, Any]:
    """Return the options of a winner that are part of a recipe and act in it."""
    options = to_dict(run.recipe(run.best()))
    return {name: options[name] for name in option_names(role="recipe") if not why_idle(name, options)}


def best_so_far(run: Run, *, on_gpu: bool) -> list[tuple[float, float | None]]:
    """Return after each trial that ended here the hours spent so far, and the best score of a finished trial so far.

    Trials are in the order in which they ended, by the run's events, or of their numbers if it has none. The events
    also tell what the other trials had spent by then. If trials are running, the last item is what all have spent, with
    the best score before it.
    """

    def spent(trial: TrialResult) -> float:
        return trial.gpu_hours if on_gpu else trial.seconds / 3600

    events = read_events(run.dir.events)
    ends, spans = end_times(events), training_spans(events)
    began = {number: times[0][0] for number, times in spans.items()}
    ended = [trial for trial in run.own_trials if trial.state != TrialState.RUNNING]
    ended.sort(key=lambda trial: (ends.get(trial.number, math.inf), trial.number))
    running = [trial for trial in run.own_trials if trial.state == TrialState.RUNNING]
    hours, scores, done = list[float](), list[float | None](), 0.0
    for place, trial in enumerate(ended, 1):
        done += spent(trial)
        now = ends.get(trial.number, math.inf)
        beside = [
            other for other in [*ended[place:], *running] if other.seconds and began.get(other.number, math.inf) < now
        ]
        hours.append(done + sum(spent(one) * min(1.0, trained(spans[one.number], now) / one.seconds) for one in beside))
        scores.append(trial.score if trial.finished else None)
    if running:
        hours.append(done + sum(map(spent, running)))
        scores.append(None)
    return list(zip(hours, accumulate(scores, higher), strict=True))


def training_spans(events: Sequence[Event]) -> defaultdict[int | None, list[tuple[float, float]]]:
    """Return from when to when each trial was in training, by number; until infinity if its end is not noted."""
    spans, began, last = defaultdict[int | None, list[tuple[float, float]]](list), dict[int | None, float](), 0.0
    for event in events:
        if event.kind in (EventKind.SWEEP_STARTED, EventKind.SWEEP_ENDED):
            ending = list(began)
        else:
            ending = [event.trial] * (event.kind in SPAN_ENDS and event.trial in began)
        for trial in ending:  # a driver that was killed has noted no end
            spans[trial].append((began.pop(trial), last if event.kind == EventKind.SWEEP_STARTED else event.time))
        if event.kind == EventKind.TRIAL_STARTED:
            began[event.trial] = event.time
        last = event.time
    for trial, time in began.items():
        spans[trial].append((time, math.inf))
    return spans


def trained(spans: Sequence[tuple[float, float]], now: float) -> float:
    """Return how many seconds a trial had been in training by a time."""
    return sum(min(end, now) - begin for begin, end in spans if begin < now)


def higher(one: float | None, other: float | None) -> float | None:
    """Return the higher of two scores, None if there is none."""
    return max((score for score in (one, other) if score is not None), default=None)


def milestone(curves: Sequence[Sequence[tuple[float, float | None]]], hours: float, *, comparable: bool) -> Milestone:
    """Return the best score of each run after some hours, by its best_so_far."""
    best = tuple(next((score for spent, score in reversed(curve) if spent <= hours + 1e-9), None) for curve in curves)
    known = [score for score in best if score is not None]
    leads = comparable and known and best.count(max(known)) == 1
    return Milestone(hours, best, best.index(max(known)) if leads else None)
