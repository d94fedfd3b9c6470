"""Replays early stopping in the order of a run's journal: was each decision right for the scores of its time?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from tune.run.journal_entries import attrs_in, scores_in
from tune.search.asha import PAUSE, RungDecision, Rungs, rung_epochs
from tune.search.journal_file import CREATE_TRIAL, SET_STATE, SET_USER_ATTR
from tune.search.trial_progress import Progress, find_default, rung_decisions
from tune.spec.sweep_config import SweepConfig


def check_decisions(
    config: SweepConfig, trials: Sequence[FrozenTrial], entries: Sequence[dict[str, Any]]
) -> Iterator[str]:
    """Check each decision that was made here, and that each trial has a decision at each rung that it went past.

    Args:
        config: of the run.
        trials: of the run.
        entries: of its journal, see read_entries.
    """
    replay = DecisionReplay(config, find_default(trials, config))
    for entry in entries:
        yield from replay.feed(entry)
    for trial in trials:
        progress = Progress.from_attrs(trial.user_attrs)
        passed = [epoch for epoch in rung_epochs(config) if epoch <= max(progress.epoch, progress.furthest)]
        if progress.end_reason and passed and passed[-1] == progress.epoch:
            passed.pop()  # it ended there by itself
        recorded = sorted(rung_decisions(trial.user_attrs))
        pending = trial.state == TrialState.RUNNING and passed[:-1] == recorded
        if "outside" not in trial.user_attrs and recorded != passed and not pending:
            yield f"trial {trial.number} reached epoch {progress.epoch}, but was decided at the rungs {recorded}"


class DecisionReplay:
    """What the entries of a journal so far tell of the rungs.

    default: number of the trial of the default recipe, None if there is none.
    """

    def __init__(self, config: SweepConfig, default: int | None) -> None:
        self.rungs, self.default = Rungs(config), default
        self.known: dict[tuple[int, int], RungDecision] = {}  # by number and epoch of the rung
        self.running: set[int] = set()

    def feed(self, entry: dict[str, Any]) -> Iterator[str]:
        """Take in an entry; yield what is wrong with the decisions in it."""
        number, code = entry["number"], entry["op_code"]
        if code in (CREATE_TRIAL, SET_STATE):
            running = TrialState(entry.get("state", TrialState.RUNNING)) == TrialState.RUNNING
            (self.running.add if running else self.running.discard)(number)
        for epoch, score in scores_in(entry).items():
            self.rungs.observe(number, epoch, score)
        for epoch, decided in sorted(rung_decisions(attrs_in(entry)).items()):
            before = self.known.get((number, epoch))
            if before is not None and (before.decision != PAUSE or decided.decision == PAUSE):
                continue
            if code == SET_USER_ATTR:
                yield from self.check(number, epoch, decided, paused=before is not None)
            self.known[number, epoch] = decided
            self.rungs.add(number, epoch, decided)

    def check(self, number: int, epoch: int, decided: RungDecision, *, paused: bool) -> Iterator[str]:
        """Yield what is wrong with a new decision. paused: it is on a trial that was paused at the rung."""
        default, at = number == self.default, f"trial {number} at rung {epoch}"
        if decided.value != (value := self.rungs.value(number, epoch, decided.value)):
            yield f"{at} was compared by {decided.value}, expected {value}"
        if paused:
            expected = self.rungs.decide_paused(number, epoch, decided.value, default=default)
            if missing := sorted(self.running - {of for of, _ in self.known}):
                yield f"{at} was decided on while trials {missing} had not come there"
        else:
            expected = self.rungs.decide(number, epoch, decided.value, default=default, margin=decided.margin)
            if decided.needed is not None and decided.margin != self.rungs.margin:
                yield f"{at} was given a margin of {decided.margin}, expected {self.rungs.margin}"
        if decided != expected:
            actual, right = describe(decided), describe(expected)
            had = self.rungs.values.get(epoch, {})
            yield f"{at}: {actual} with {decided.value}, not {right}; the rung had {had}"


def describe(decided: RungDecision) -> str:
    """Return a decision as one word, with the reason if a trial goes on that would have been stopped."""
    return decided.decision + (f" (kept: {decided.kept})" if decided.kept else "")
