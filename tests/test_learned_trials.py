"""What samplers see of a sweep of many trials."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from optuna.storages import JournalStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from tune.search import journal as search_journal
from tune.search.asha import CONTINUE, PAUSE, STOP, RungDecision
from tune.search.journal import OOM_CONSTRAINT, Journal
from tune.search.learned_trials import BEST, RECENT, LearnedTrials
from tune.search.optuna_compat import study_id
from tune.search.sampler import make_sampler
from tune.search.sampler_storage import SamplerStorage
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
    best = sorted(range(COUNT), key=lambda number: (number % 3 > 0, number))[:BEST]  # trained to their end first
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


def paused_trials(folder: Path, count: int) -> Journal:
    """Return the journal of trials that pause at the rung, the earlier the better, while one runs."""
    journal = Journal(folder, sweep("tpe"))
    space = journal.config.space
    for number in range(count):
        params, score = {"lr": 1e-5 * 1.002**number}, 0.9 - number / 10_000
        journal.study.add_trial(
            create_trial(
                state=TrialState.RUNNING, params=params, distributions=space.distributions(params),
                user_attrs={"rungs": {"1": {"value": score, "decision": PAUSE}}}, intermediate_values={1: score},
            )
        )  # fmt: skip
    journal.ask()
    return journal


def test_paused_trials_count_as_ended_ones_until_they_go_on_or_stop(tmp_path: Path) -> None:
    paused_trials(tmp_path, COUNT)
    journal = Journal(tmp_path, sweep("tpe"))
    journal.reattach()
    best, newest = list(range(BEST)), list(range(COUNT - RECENT, COUNT))
    assert shown(journal) == [*best, *newest, COUNT]
    assert len(journal.paused()) == COUNT
    journal.record_rung(0, 1, RungDecision(0.9, CONTINUE))
    journal.record_rung(1, 1, RungDecision(0.9, STOP))
    journal.tell(1)
    assert shown(journal) == [*best, BEST, *newest, COUNT]  # trial 0 runs, so that another is among the best
    assert shown(Journal(tmp_path, sweep("tpe"))) == shown(journal)
    with journal.storage.sampling():
        states = {trial.number: trial.state for trial in journal.trials()}
    assert [states[number] for number in (0, 1, 2)] == [TrialState.RUNNING, TrialState.PRUNED, TrialState.PRUNED]


def test_a_proposal_reads_no_paused_trial_again_and_a_reattached_one_is_not_proposed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paused_trials(tmp_path, 40)
    journal, made, read = Journal(tmp_path, sweep("tpe")), list[int](), list[int]()

    def count_sampler(config: SweepConfig, number: int, *args: Any) -> Any:
        made.append(number)
        return make_sampler(config, number, *args)

    def count_read(storage: SamplerStorage, trial: int) -> FrozenTrial:
        read.append(trial)
        return JournalStorage.get_trial(storage, trial)

    monkeypatch.setattr(search_journal, "make_sampler", count_sampler)
    assert [number for number, _ in journal.reattach()] == [40]
    assert made == []
    journal.ask()
    monkeypatch.setattr(SamplerStorage, "get_trial", count_read)
    journal.ask()
    assert {*read} == {40, 41, 42}  # trials' ids are their numbers in the first study
    assert made == [41, 42]


def test_a_trial_that_a_kill_left_half_drawn_gets_the_rest_of_its_proposal(tmp_path: Path) -> None:
    (whole := tmp_path / "whole").mkdir()
    (half := tmp_path / "half").mkdir()
    config = sweep("tpe", lr={"loguniform": [1e-5, 1e-2]}, momentum={"uniform": [0.8, 0.99]})
    number, values = Journal(whole, config).ask()
    journal, first = Journal(half, config), {"lr": values["lr"]}
    drawn = {"lr": config.space.distributions(values)["lr"]}
    journal.study.add_trial(create_trial(state=TrialState.RUNNING, params=first, distributions=drawn))
    assert Journal(half, config).reattach() == [(number, values)]


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
