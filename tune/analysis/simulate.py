"""What another stopper would have done with the trials of a run: a replay of their recorded curves.

The reports come in the recorded order, and the code that decides in a sweep decides. A trial that was stopped in the
recorded sweep and would go on here has no curve from there on: at each later rung its value is between its best so far
and 1 (between 0 and 1 if rungs compare the last scores), or it does not come that far. Where a decision depends on
that, the replay says so.
"""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from optuna.trial import TrialState

from trainable.core.errors import InputError
from tune.run.journal_entries import RecordedReport, read_entries, reports_in
from tune.run.results import Run, TrialResult
from tune.search.asha import CONTINUE, PAUSE, STOP, Kept, RungDecision, Rungs, cutoff, cutoff_rule, rung_epochs
from tune.search.journal import read_trials
from tune.search.trial_progress import find_default
from tune.spec.sections import EarlyStopping
from tune.spec.sweep_config import SweepConfig
from tune.spec.sweep_file import load_sweep_config

BEST_DICE = 1.0


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
        self.promotes = config.early_stopping.type == "promote"
        for number, trial in self.trials.items():
            trial.missing = 0 if trial.recorded.score is None and not trial.ended else None
            if self.promotes and trial.missing == 0:
                for bounds in self.doubtful.values():
                    bounds[number] = (0.0, BEST_DICE)
        if config.objective.cost:
            for imported in (trial for trial in run.trials if trial.imported_from):
                self.doubt_between_rungs(imported)

    def doubt_between_rungs(self, imported: TrialResult) -> None:
        """Bound the values of an imported trial at other rungs than its own: with a cost, no journal has them."""
        known = {epoch: decided.value for epoch, decided in imported.rungs.items()}
        rises = self.config.early_stopping.value == "best"
        last = (imported.stop_epoch or 0) if imported.kept else imported.epoch
        for epoch in (epoch for epoch in self.doubtful if epoch not in known and epoch <= last):
            low = max((value for at, value in known.items() if at < epoch), default=0.0)
            later = [value for at, value in known.items() if at > epoch]
            high = min(later, default=BEST_DICE if imported.score is None else imported.score)
            self.doubtful[epoch][imported.number] = (low, high) if rises else (0.0, BEST_DICE)

    def feed(self, report: RecordedReport) -> None:
        """Decide on a report, unless its trial is stopped already or was imported: then it only sets bars.

        A report that came after the run was read, since a sweep still writes to it, is ignored.
        """
        recorded, trial = self.recorded.get(report.number), self.trials.get(report.number)
        if recorded is None or report.epoch > recorded.epoch:
            return
        at_rung = report.epoch in self.doubtful and not report.last
        if report.score is not None and (trial is None or trial.stop is None):
            self.rungs.observe(report.number, report.epoch, report.score)
        if trial is None:
            counts = not recorded.kept or report.epoch <= (recorded.stop_epoch or 0)
            if at_rung and counts:
                value = self.rungs.value(report.number, report.epoch, report.best)
                self.rungs.add(report.number, report.epoch, RungDecision(value, CONTINUE))
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
        if (trial.recorded.state == TrialState.RUNNING and not self.promotes) or last.number in self.rungs.kept:
            return  # its later reports come after all that are recorded, or set no bar
        for epoch in self.doubtful:
            if epoch > last.epoch:
                low = last.best if self.config.early_stopping.value == "best" else 0.0
                self.doubtful[epoch][last.number] = (low, BEST_DICE)

    def decide(self, trial: ReplayedTrial, report: RecordedReport) -> None:
        """Decide on a trial at a rung, with the lowest and with the highest bar that the missing curves allow."""
        number, epoch = report.number, report.epoch
        value = self.rungs.value(number, epoch, report.best)
        if self.promotes:
            self.rungs.add(number, epoch, RungDecision(value, PAUSE))
            return
        certain, stopping = list(self.rungs.values[epoch].values()), self.config.early_stopping
        doubtful = [bounds for other, bounds in self.doubtful[epoch].items() if other != number]
        bars = (
            lowest_bar(certain, [low for low, _ in doubtful], stopping),
            highest_bar(certain, [high for _, high in doubtful], stopping),
        )
        default = number == self.default
        lenient, strict = (self.rungs.decide(number, epoch, value, default=default, earlier=bar) for bar in bars)
        if trial.doubtful:  # it may have been stopped before
            self.doubtful[epoch][number] = (value, value)
        elif lenient == strict:
            self.rungs.add(number, epoch, lenient)
        else:
            trial.doubtful = True
            self.rungs.add(number, epoch, RungDecision(value, CONTINUE))
        if lenient.kept and strict.kept and trial.kept is None:
            trial.kept = (epoch, lenient.kept)
        if lenient.decision == STOP:
            trial.stop = epoch
        elif strict.decision == STOP and trial.may_stop is None:
            trial.may_stop = epoch

    def promote(self) -> None:
        """Decide on the paused trials, once all reports are in; does nothing under a stopper that pauses none."""
        if not self.promotes:
            return
        for epoch, values in self.rungs.values.items():
            certain, doubtful = list(values.values()), list(self.doubtful[epoch].values())
            bars = (
                lowest_bar(certain, [low for low, _ in doubtful], self.config.early_stopping),
                highest_bar(certain, [high for _, high in doubtful], self.config.early_stopping),
            )
            for number, trial in self.trials.items():
                if number in values:
                    self.decide_paused(trial, epoch, values[number], bars)

    def decide_paused(
        self, trial: ReplayedTrial, epoch: int, value: float, bars: tuple[list[float], list[float]]
    ) -> None:
        """Decide on a paused trial, with the values at its rung whose bar is lowest, and those whose bar is highest."""
        number = trial.recorded.number
        lenient, strict = (
            self.rungs.decide_paused(number, epoch, value, default=number == self.default, values=bar) for bar in bars
        )
        if lenient.kept and strict.kept:
            trial.kept = (epoch, lenient.kept)
        if lenient.decision == STOP:
            trial.stop, trial.missing = epoch, None
        elif strict.decision == STOP:
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
    if stopping.type == "promote":  # which decides once only
        return [cutoff([*certain, *more[:count]], stopping) for count in range(len(more) + 1)]
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
    replay.promote()
    return Simulation(run, config, tuple(replay.trials.values()))
