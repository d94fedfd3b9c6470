"""What samplers see of a sweep of many trials."""

from __future__ import annotations

from pathlib import Path

import pytest
from optuna.trial import TrialState, create_trial

from tune.search.journal import OOM_CONSTRAINT, Journal
from tune.search.learned_trials import BEST, RECENT, LearnedTrials
from tune.search.optuna_compat import study_id
from tune.spec.sweep_config import SweepConfig, make_sweep_config

COUNT = BEST + RECENT + 150


def sweep(searcher: str, **space: dict[str, list[float]]) -> SweepConfig:
    return make_sweep_config({
        "study": {"trials": 100_000}, "searcher": {"type": searcher, "startup_trials": 5},
        "train": {"epochs": 4}, "space": space or {"lr": {"loguniform": [1e-5, 1e-2]}},
    })  # fmt: skip


def add_trials(journal: Journal, count: int) -> None:
    """Add ended trials: each third complete, the earlier the better; trial 9 out of memory, as every 300th."""
    space = journal.config.space
    for number in range(count):
        out, complete = number % 300 == 9, number % 3 == 0
        value = 0.0 if out else 0.9 - number / 10_000
        params = {"lr": 1e-5 * 1.002**number}
        journal.study.add_trial(
            create_trial(
                state=TrialState.COMPLETE if complete else TrialState.PRUNED,
                value=value, params=params, distributions=space.distributions(params),
                intermediate_values={1: value}, constraints={OOM_CONSTRAINT: 1.0} if out else None,
            )
        )  # fmt: skip


def shown(journal: Journal) -> list[int]:
    with journal.storage.sampling():
        return [trial.number for trial in journal.trials()]


@pytest.mark.parametrize("searcher", ["bayes", "tpe"])
def test_of_many_trials_samplers_see_the_best_the_newest_and_those_out_of_memory(searcher: str, tmp_path: Path) -> None:
    journal = Journal(tmp_path, sweep(searcher))
    add_trials(journal, COUNT)
    seen = shown(journal)
    best = sorted(range(COUNT), key=lambda number: (number % 3 > 0, number))[:BEST]  # the complete first
    newest = list(range(COUNT - RECENT, COUNT))
    assert seen == sorted({*best, *newest, *range(9, COUNT, 300)})
    assert len(journal.trials()) == COUNT
    assert [journal.ask()[0] for _ in range(2)] == [COUNT, COUNT + 1]  # numbers count all trials
    assert shown(journal) == [*seen, COUNT, COUNT + 1]
    assert journal.storage.handed_out(study_id(journal.study)) == COUNT + 2


def test_an_opened_journal_shows_its_samplers_what_the_one_that_wrote_it_did(tmp_path: Path) -> None:
    journal = Journal(tmp_path, sweep("tpe"))
    shown(journal)  # before the trials, so that each is noticed as it comes
    add_trials(journal, COUNT)
    assert shown(Journal(tmp_path, sweep("tpe"))) == shown(journal)


def test_a_short_sweep_and_one_of_a_counted_space_show_all(tmp_path: Path) -> None:
    journal = Journal(tmp_path, sweep("bayes"))
    add_trials(journal, RECENT)
    assert shown(journal) == list(range(RECENT))
    everything = LearnedTrials(None)
    for frozen in journal.trials():
        everything.add(frozen)
    assert len(everything.chosen()) == RECENT
    counted = Journal(tmp_path, sweep("bayes", batch_size={"randint": [1, 8]}))
    assert counted.storage.best is None
    assert journal.storage.best == 5


def test_as_many_startup_trials_as_are_asked_for_are_seen() -> None:
    assert LearnedTrials(5).best == BEST
    assert LearnedTrials(4 * BEST).best == 4 * BEST
