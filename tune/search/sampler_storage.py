"""Optuna's storage of a sweep, which shows samplers the trials that they learn from."""

from __future__ import annotations

import copy
from collections.abc import Container, Iterator
from contextlib import contextmanager

from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend
from optuna.trial import FrozenTrial, TrialState

from tune.search.learned_trials import LearnedTrials
from tune.search.optuna_compat import trial_id
from tune.search.trial_progress import paused_at


class SamplerStorage(JournalStorage):
    """A JournalStorage that lets samplers learn from paused trials, and from a limited number of ended ones.

    A paused trial may go on, so that it is RUNNING in the study, of which samplers take no notice. Its scores up to the
    rung are known, as those of a trial that was stopped there.

    All trials are created by this process, so that it is known which have not ended: the others are read once.

    best: of LearnedTrials.
    """

    def __init__(self, backend: BaseJournalBackend, best: int | None = None) -> None:
        super().__init__(backend)
        self.best = best
        self._sampling = False
        self._learned: dict[int, LearnedTrials] = {}  # by id of the study
        self._open: dict[int, set[int]] = {}  # ids of the trials that had not ended, by id of the study

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
        trials = self._unfinished(study_id)
        return len(self._learned[study_id].ended) + sum(frozen.state != TrialState.WAITING for frozen in trials)

    def _shown(self, study_id: int) -> list[FrozenTrial]:
        """Return the trials that samplers see, by number."""
        trials = [as_sampled(frozen) for frozen in self._unfinished(study_id)]
        return sorted(self._learned[study_id].chosen() + trials, key=lambda frozen: frozen.number)

    def _unfinished(self, study_id: int) -> list[FrozenTrial]:
        """Return the trials that have not ended; those that have since the last call are kept in `_learned`."""
        if study_id not in self._open:
            self._learned[study_id] = LearnedTrials(self.best)
            self._open[study_id] = {trial_id(frozen) for frozen in self.every_trial(study_id)}
        learned, unfinished = self._learned[study_id], []
        for number in sorted(self._open[study_id]):
            frozen = self.get_trial(number)
            if frozen.state.is_finished():
                learned.add(frozen)
                self._open[study_id].remove(number)
            else:
                unfinished.append(frozen)
        return unfinished


def as_sampled(frozen: FrozenTrial) -> FrozenTrial:
    """Return a trial as samplers see it: a copy that is PRUNED if it is paused, else the trial itself."""
    if frozen.state != TrialState.RUNNING or paused_at(frozen.user_attrs) is None:
        return frozen
    pruned = copy.copy(frozen)
    pruned.state = TrialState.PRUNED
    return pruned
