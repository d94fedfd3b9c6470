"""Promotion: when all trials of a sweep pause at a rung or have ended, the best of them go on and the others stop."""

from __future__ import annotations

from collections.abc import Callable

from tune.search.asha import STOP, RungDecision, Rungs
from tune.search.journal import Journal
from tune.search.trial_progress import find_default, rung_decisions

OnDecision = Callable[[int, int, RungDecision], None]  # trial's number, epoch of the rung, decision


def promote(journal: Journal, on_decision: OnDecision = lambda *_: None) -> list[int]:
    """Decide on the paused trials, unless one that was handed out has not come to the rung yet; stop the others.

    To be called while no trial runs and no new one is to come. Each decision is in the journal before the next one is
    made, and depends on nothing but the trials' scores at the rung, so that after a kill the others are decided alike.

    Args:
        on_decision: called with each decision once it is in the journal, and Optuna knows of a stop.

    Returns:
        The numbers of the trials that go on, the best first.
    """
    paused = journal.paused()
    if not all(rung_decisions(journal.attrs(number)) for number in journal.running - paused.keys()):
        return []
    trials, rungs = journal.trials() if paused else [], Rungs(journal.config)
    default = find_default(trials, journal.config)
    for trial in trials:
        for epoch, decided in sorted(rung_decisions(trial.user_attrs).items()):
            rungs.add(trial.number, epoch, decided)
    promoted = []
    for number in sorted(paused, key=lambda number: (-rungs.values[paused[number]][number], number)):
        epoch = paused[number]
        decided = rungs.decide_paused(number, epoch, rungs.values[epoch][number], default=number == default)
        journal.record_rung(number, epoch, decided)
        if decided.decision == STOP:
            journal.tell(number)
        else:
            promoted.append(number)
        on_decision(number, epoch, decided)
    return promoted
