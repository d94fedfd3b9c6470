"""What another stopper would have done with the trials of a run: a replay of their recorded curves.

The reports come in the recorded order, and the code that decides in a sweep decides. A trial that was stopped in the
recorded sweep and would go on here has no curve from there on: at each later rung its value is between its best so far
and 1, or it does not come that far. Where a decision depends on that, the replay says so.
"""

from __future__ import annotations

import math
from bisect import insort
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from optuna.trial import TrialState

from trainable.core.errors import InputError
from tune.run.journal_entries import RecordedReport, read_entries, reports_in
from tune.run.results import Run, TrialResult
from tune.search.asha import CONTINUE, STOP, Kept, RungDecision, Rungs, cutoff_rule, rung_epochs
from tune.search.journal import read_trials
from tune.search.trial_progress import find_default
from tune.spec.sections import EarlyStopping
from tune.spec.sweep_config import SweepConfig
from tune.spec.sweep_file import load_sweep_config

BEST_DICE = 1.0
MAX_LOST = 10  # that are listed


@dataclass
class ReplayedTrial:
    """A trial under another stopper.

    recorded: as the run has it. stop: the rung at which it is stopped, at the latest; None if it may go on to its end.
    may_stop: the first rung at which it is stopped or goes on depending on curves that are missing; None if there is
    none. kept: the rung at which it would be stopped, and why it goes on all the same; None if that is not certain.
    missing: the epoch after which its own curve is missing although it goes on; None if it is not.
    """

    recorded: TrialResult
    stop: int | None = None
    may_stop: int | None = None
    kept: tuple[int, Kept] | None = None
    missing: int | None = None
    doubtful: bool = False  # whether it sets the bar at later rungs depends on curves that are missing

    @property
    def ended(self) -> bool:
        """Whether the recorded trial trained until it ended or failed by itself, so that its curve is whole."""
        return bool(self.recorded.end_reason) or self.recorded.state == TrialState.FAIL

    @property
    def goes_on(self) -> bool:
        """Whether it certainly trains to its end."""
        return self.stop is None and self.may_stop is None and self.missing is None

    def epochs(self, whole: int) -> tuple[int, int]:
        """Return the least and the most epochs that it may take. whole: those of a whole training."""
        end = self.recorded.epoch if self.ended else whole
        least = [epoch for epoch in (self.may_stop, self.stop, self.missing) if epoch is not None]
        return min(least, default=end), end if self.stop is None else self.stop


class Replay:
    """Decides on the reports of a run, one after the other, under another config.

    Attributes:
        trials: the run's own trials, by number.
        rungs: the values that certainly are at each rung.
        doubtful: by epoch and number, between which two values a trial is at that rung if it is there at all.
    """

    def __init__(self, run: Run, config: SweepConfig, default: int | None) -> None:
        self.config, self.default = config, default
        self.recorded = {trial.number: trial for trial in run.trials}
        self.trials = {t.number: ReplayedTrial(t) for t in run.own_trials if not t.outside_space}
        self.rungs = Rungs(config)
        self.doubtful: dict[int, dict[int, tuple[float, float]]] = {epoch: {} for epoch in rung_epochs(config)}
        for trial in self.trials.values():
            trial.missing = 0 if trial.recorded.score is None and not trial.ended else None
        if config.objective.cost:
            for imported in (trial for trial in run.trials if trial.imported_from):
                self.doubt_between_rungs(imported)

    def doubt_between_rungs(self, imported: TrialResult) -> None:
        """Bound the values of an imported trial at other rungs than its own: with a cost, no journal has them."""
        known = {epoch: decided.value for epoch, decided in imported.rungs.items()}
        last = (imported.stop_epoch or 0) if imported.kept else imported.epoch
        for epoch in (epoch for epoch in self.doubtful if epoch not in known and epoch <= last):
            low = max((value for at, value in known.items() if at < epoch), default=0.0)
            later = [value for at, value in known.items() if at > epoch]
            high = min(later, default=BEST_DICE if imported.score is None else imported.score)
            self.doubtful[epoch][imported.number] = (low, high)

    def feed(self, report: RecordedReport) -> None:
        """Decide on a report, unless its trial is stopped already or was imported: then it only sets bars.

        A report that came after the run was read, since a sweep still writes to it, is ignored.
        """
        recorded, trial = self.recorded.get(report.number), self.trials.get(report.number)
        if recorded is None or report.epoch > recorded.epoch:
            return
        at_rung = report.epoch in self.doubtful and not report.last
        if trial is None:
            counts = not recorded.kept or report.epoch <= (recorded.stop_epoch or 0)
            if at_rung and counts:
                self.rungs.add(report.number, report.epoch, RungDecision(report.best, CONTINUE))
            return
        if trial.stop is not None:
            return
        if at_rung:
            self.decide(trial, report)
        if trial.stop is None and report.epoch == trial.recorded.epoch and not trial.ended:
            self.lose(trial, report)

    def lose(self, trial: ReplayedTrial, last: RecordedReport) -> None:
        """Note that a trial goes on beyond its recorded curve, whose last report this is."""
        trial.missing = last.epoch
        if trial.recorded.state == TrialState.RUNNING or last.number in self.rungs.kept:
            return  # its later reports come after all that are recorded, or set no bar
        for epoch in self.doubtful:
            if epoch > last.epoch:
                self.doubtful[epoch][last.number] = (last.best, BEST_DICE)

    def decide(self, trial: ReplayedTrial, report: RecordedReport) -> None:
        """Decide on a trial at a rung, with the lowest and with the highest bar that the missing curves allow."""
        number, epoch, best = report.number, report.epoch, report.best
        certain, stopping = list(self.rungs.values[epoch].values()), self.config.early_stopping
        doubtful = [bounds for other, bounds in self.doubtful[epoch].items() if other != number]
        bars = (
            lowest_bar(certain, [low for low, _ in doubtful], stopping),
            highest_bar(certain, [high for _, high in doubtful], stopping),
        )
        default = number == self.default
        lenient, strict = (self.rungs.decide(number, epoch, best, default=default, earlier=bar) for bar in bars)
        if trial.doubtful:  # it may have been stopped before
            self.doubtful[epoch][number] = (best, best)
        elif lenient == strict:
            self.rungs.add(number, epoch, lenient)
        else:
            trial.doubtful = True
            self.rungs.add(number, epoch, RungDecision(best, CONTINUE))
        if lenient.kept and strict.kept and trial.kept is None:
            trial.kept = (epoch, lenient.kept)
        if lenient.decision == STOP:
            trial.stop = epoch
        elif strict.decision == STOP and trial.may_stop is None:
            trial.may_stop = epoch


def lowest_bar(certain: Sequence[float], doubtful: Iterable[float], stopping: EarlyStopping) -> list[float]:
    """Return the values at a rung, some of the doubtful ones among them, whose cutoff is lowest."""
    lows = sorted(doubtful)
    cutoffs = growing_cutoffs(certain, lows, stopping)
    return [*certain, *lows[: cutoffs.index(min(cutoffs))]]


def highest_bar(certain: Sequence[float], doubtful: Iterable[float], stopping: EarlyStopping) -> list[float]:
    """Return the values at a rung, some of the doubtful ones among them, whose cutoff is highest."""
    highs = sorted(doubtful, reverse=True)
    cutoffs = growing_cutoffs(certain, highs, stopping)
    return [*certain, *highs[: cutoffs.index(max(cutoffs))]]


def growing_cutoffs(certain: Sequence[float], more: Sequence[float], stopping: EarlyStopping) -> list[float]:
    """Return the cutoff of the certain values, then with one more value after the other.

    As `cutoff` to rounding, in a hundredth of the time: there are as many as curves are missing, at each decision.
    """
    quantile, min_trials = cutoff_rule(stopping)
    values, cutoffs = sorted(certain), list[float]()
    for value in (None, *more):
        if value is not None:
            insort(values, value)
        position = (len(values) - 1) * quantile
        low = max(0, int(position))
        enough = len(values) >= min_trials
        step = values[low + 1] - values[low] if low + 1 < len(values) else 0.0
        cutoffs.append(values[low] + (position - low) * step if enough else -math.inf)
    return cutoffs


@dataclass(frozen=True)
class Simulation:
    """What another stopper would have done with a run's own trials. config: with that stopper."""

    run: Run
    config: SweepConfig
    trials: tuple[ReplayedTrial, ...]

    @property
    def stopped(self) -> list[ReplayedTrial]:
        """The trials that are certainly stopped."""
        return [trial for trial in self.trials if trial.stop is not None]

    @property
    def unsure(self) -> list[ReplayedTrial]:
        """The trials that are stopped or not depending on curves that are missing; their own curves are whole."""
        return [t for t in self.trials if t.stop is None and t.may_stop is not None and t.missing is None]

    @property
    def missing(self) -> list[ReplayedTrial]:
        """The trials that may go on beyond the end of their recorded curve."""
        return [trial for trial in self.trials if trial.missing is not None]

    @property
    def finished(self) -> list[ReplayedTrial]:
        """The trials that trained to their end in the recorded sweep, best first."""
        by_number = {trial.recorded.number: trial for trial in self.trials}
        return [by_number[t.number] for t in self.run.ranking if t.finished and t.number in by_number]

    @property
    def epochs(self) -> tuple[int, int]:
        """The least and the most epochs that the sweep may have taken."""
        bounds = [trial.epochs(self.config.fixed("epochs")) for trial in self.trials]
        return sum(low for low, _ in bounds), sum(high for _, high in bounds)


def simulate(run: Run, overrides: Sequence[str]) -> Simulation:
    """Replay the recorded curves of a run under another stopper.

    Args:
        overrides: early_stopping.KEY=VALUE texts; what is not named stays as in the run.

    Raises:
        InputError: another section is named, or the settings are wrong.
    """
    for text in overrides:
        if not text.strip().startswith("early_stopping."):
            keys = ", ".join(f"early_stopping.{name}" for name in EarlyStopping.model_fields)
            raise InputError(f"--set {text}: a simulation changes early stopping only: {keys}")
    config = load_sweep_config(run.dir.config, overrides)
    default = find_default(read_trials(run.folder, run.config.record.study), run.config)
    replay = Replay(run, config, default)
    for report in reports_in(read_entries(run, earlier=True)):
        replay.feed(report)
    return Simulation(run, config, tuple(replay.trials.values()))


def simulation_lines(result: Simulation) -> list[str]:
    """Return what the other stopper would have stopped, lost and cost, and what is unknown, as lines."""
    rungs = ", ".join(map(str, rung_epochs(result.config)))
    low, high = result.epochs
    recorded = sum(trial.recorded.epoch for trial in result.trials)
    cost = f"{low}" if low == high else f"{low} to {high}"
    lines = [
        f"early stopping: {result.config.early_stopping.type} at epochs {rungs}" if rungs else "early stopping: none",
        f"stopped: {len(result.stopped)} of {len(result.trials)} trials{by_epoch(result.stopped)}",
        f"trained: {cost} epochs, {recorded} in the recorded sweep",
        *lost_lines(result),
    ]
    if result.unsure:
        unsure = ", ".join(str(trial.recorded.number) for trial in result.unsure)
        lines.append(f"unknown: whether these would be stopped, as scores they are compared with are missing: {unsure}")
    if result.missing:
        epochs = Counter(trial.missing for trial in result.missing)
        where = ", ".join(f"{count} after epoch {epoch}" for epoch, count in sorted(epochs.items()))
        trials = "1 trial that" if len(result.missing) == 1 else f"{len(result.missing)} trials that"
        lines.append(f"unknown: the scores of {trials} may go on where the recorded sweep has no more: {where}")
    return lines


def by_epoch(stopped: Sequence[ReplayedTrial]) -> str:
    """Return at which epochs how many trials are stopped, in brackets; "" if none is."""
    epochs = Counter(trial.stop for trial in stopped)
    counts = ", ".join(f"{count} at epoch {epoch}" for epoch, count in sorted(epochs.items()))
    return f" ({counts})" * bool(stopped)


def lost_lines(result: Simulation) -> list[str]:
    """Return which of the trials that trained to their end would be lost, by rank, and the best score that stays."""
    finished = result.finished
    if not finished:
        return ["no trial has trained to its end: what would be lost is unknown"]
    lost, kept = [], []
    for rank, trial in enumerate(finished, 1):
        name = f"  rank {rank}: trial {trial.recorded.number}, {trial.recorded.score:.4f},"
        if trial.stop is not None:
            latest = " at the latest" if trial.may_stop not in (None, trial.stop) else ""
            lost.append(f"{name} stopped at epoch {trial.stop}{latest}")
        elif trial.kept is not None:
            epoch, why = trial.kept
            kept.append(f"{name} at epoch {epoch}, {'drawn by the audit' if why == 'audit' else 'the default recipe'}")
    lines = [f"lost: {len(lost)} of the {len(finished)} trials that trained to their end", *first_lines(lost)]
    if kept:
        lines += [f"below a cutoff, but not stopped: {len(kept)} of them", *first_lines(kept)]
    return [*lines, best_line(result, finished)]


def first_lines(group: Sequence[str]) -> list[str]:
    """Return the first MAX_LOST of these lines, best first, and how many more there are."""
    return [*group[:MAX_LOST], *[f"  and {len(group) - MAX_LOST} more of lower rank"] * (len(group) > MAX_LOST)]


def best_line(result: Simulation, finished: Sequence[ReplayedTrial]) -> str:
    """Return the best score that certainly stays, and what becomes of the recorded best. finished: best first."""
    winner, best = finished[0], next((trial.recorded for trial in finished if trial.goes_on), None)
    known = "at least " if result.missing or result.unsure else ""
    text = "unknown" if best is None else f"{known}{best.score:.4f} of trial {best.number}"
    if winner.goes_on:
        return f"best score: {text}, as recorded"
    recorded = f"the recorded best, {winner.recorded.score:.4f} of trial {winner.recorded.number},"
    fate = f"{recorded} is stopped" if winner.stop is not None else f"whether {recorded} is stopped is unknown"
    return f"best score: {text}; {fate}"
