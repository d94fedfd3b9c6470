"""Optuna's storage of a sweep, which shows samplers the trials that they learn from."""

from __future__ import annotations

import copy
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend
from optuna.trial import FrozenTrial, TrialState

from tune.search.learned_trials import LearnedTrials
from tune.search.optuna_compat import trial_id
from tune.search.trial_progress import paused_at


class SamplerStorage(JournalStorage):
    """A JournalStorage that lets samplers learn from a limited number of ended and paused trials.

    A paused trial may go on, so that it is RUNNING in the study, of which samplers take no notice. Its scores up to the
    rung are known, as those of a trial that was stopped there.

    All trials are created and changed by this process, so that an ended one is read once, and a paused one once before
    it changes.

    best: of LearnedTrials.
    """

    def __init__(self, backend: BaseJournalBackend, best: int | None = None) -> None:
        super().__init__(backend)
        self.best = best
        self._sampling = False
        self._learned: dict[int, LearnedTrials] = {}  # by id of the study
        self._open: dict[int, set[int]] = {}  # ids of the trials that had neither ended nor paused, by id of the study
        self._paused: dict[int, tuple[int, int]] = {}  # id of the study and number of a paused trial, by its id

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """Show the trials to learn from in this context, and paused trials as PRUNED."""
        self._sampling = True
        try:
            yield
        finally:
            self._sampling = False

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """Create a trial, and return its id."""
        created = super().create_new_trial(study_id, template_trial)
        if study_id in self._open:
            self._open[study_id].add(created)
        return created

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Set an attribute, by which a paused trial may go on."""
        super().set_trial_user_attr(trial_id, key, value)
        self._read_again(trial_id)

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """Set the state, by which a paused trial may end; see BaseStorage."""
        changed = super().set_trial_state_values(trial_id, state, values)
        self._read_again(trial_id)
        return changed

    def _read_again(self, trial_id: int) -> None:
        """Have a paused trial looked at again, as it may have changed."""
        if trial_id in self._paused:
            study_id, number = self._paused.pop(trial_id)
            self._learned[study_id].remove(number)
            self._open[study_id].add(trial_id)

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """Return the trials of a study in these states, all by default; those to learn from in `sampling`."""
        if not self._sampling:
            return super().get_all_trials(study_id, deepcopy, states)
        trials = [frozen for frozen in self._shown(study_id) if states is None or frozen.state in states]
        return copy.deepcopy(trials) if deepcopy else trials

    def every_trial(self, study_id: int) -> list[FrozenTrial]:
        """Return all trials of a study, also in `sampling`."""
        return super().get_all_trials(study_id, deepcopy=False)

    def handed_out(self, study_id: int) -> int:
        """Return how many trials of a study are not enqueued only."""
        trials = self._running(study_id)
        return len(self._learned[study_id].ended) + sum(frozen.state != TrialState.WAITING for frozen in trials)

    def _shown(self, study_id: int) -> list[FrozenTrial]:
        """Return the trials that samplers see, by number."""
        running = self._running(study_id)
        return sorted(self._learned[study_id].chosen() + running, key=lambda frozen: frozen.number)

    def _running(self, study_id: int) -> list[FrozenTrial]:
        """Return the trials that have neither ended nor paused; those that have since are kept in `_learned`."""
        if study_id not in self._open:
            self._learned[study_id] = LearnedTrials(self.best)
            self._open[study_id] = {trial_id(frozen) for frozen in self.every_trial(study_id)}
        running = []
        for read in sorted(self._open[study_id]):
            frozen = self.get_trial(read)
            shown = as_sampled(frozen)
            if not shown.state.is_finished():
                running.append(frozen)
                continue
            self._learned[study_id].add(shown)
            self._open[study_id].remove(read)
            if shown is not frozen:
                self._paused[read] = study_id, frozen.number
        return running


def as_sampled(frozen: FrozenTrial) -> FrozenTrial:
    """Return a trial as samplers see it: a copy that is PRUNED if it is paused, else the trial itself."""
    if frozen.state != TrialState.RUNNING or paused_at(frozen.user_attrs) is None:
        return frozen
    pruned = copy.copy(frozen)
    pruned.state = TrialState.PRUNED
    return pruned
