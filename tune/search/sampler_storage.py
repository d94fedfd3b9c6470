"""Optuna's storage of a sweep, which shows samplers the trials that are paused at a rung as stopped there."""

from __future__ import annotations

import copy
from collections.abc import Container, Iterator
from contextlib import contextmanager

from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend
from optuna.trial import FrozenTrial, TrialState

from tune.search.trial_progress import paused_at


class SamplerStorage(JournalStorage):
    """A JournalStorage that lets samplers learn from paused trials.

    A paused trial may go on, so that it is RUNNING in the study, of which samplers take no notice. Its scores up to the
    rung are known, as those of a trial that was stopped there.
    """

    def __init__(self, backend: BaseJournalBackend) -> None:
        super().__init__(backend)
        self._sampling = False

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """Show paused trials as PRUNED in this context."""
        self._sampling = True
        try:
            yield
        finally:
            self._sampling = False

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """Return the trials of a study in these states, all by default."""
        if not self._sampling:
            return super().get_all_trials(study_id, deepcopy, states)
        trials = [as_sampled(frozen) for frozen in super().get_all_trials(study_id, deepcopy)]
        return [frozen for frozen in trials if states is None or frozen.state in states]


def as_sampled(frozen: FrozenTrial) -> FrozenTrial:
    """Return a trial as samplers see it: a copy that is PRUNED if it is paused, else the trial itself."""
    if frozen.state != TrialState.RUNNING or paused_at(frozen.user_attrs) is None:
        return frozen
    pruned = copy.copy(frozen)
    pruned.state = TrialState.PRUNED
    return pruned
