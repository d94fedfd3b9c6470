"""The scheduler and the searcher without a cluster: decisions and proposals that survive a crash."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import SWEEP, make_report, report_all, start_journal
from optuna.trial import TrialState

from tune.driver.scheduling.searcher import OptunaSearcher
from tune.driver.scheduling.storage_watch import StorageWatch
from tune.run.results import Run, read_run
from tune.run.run_dir import RunDir
from tune.search.asha import CONTINUE, STOP, RungDecision
from tune.search.journal import Journal, read_trials
from tune.search.journal_file import JOURNAL
from tune.search.trial_progress import rung_decisions
from tune.spec.sweep_config import SweepConfig, make_sweep_config
from tune.spec.sweep_file import dump


@pytest.fixture
def config() -> SweepConfig:
    return make_sweep_config(SWEEP)


def test_the_first_at_a_rung_goes_on_and_a_worse_one_is_stopped(tmp_path: Path, config: SweepConfig):
    journal, scheduler = start_journal(tmp_path, config)
    for _ in range(3):
        journal.ask()
    assert report_all(journal, scheduler, 0, make_report(1, 0.5)) == CONTINUE
    assert report_all(journal, scheduler, 1, make_report(1, 0.4)) == STOP
    assert (
        report_all(journal, scheduler, 2, make_report(1, 0.6), make_report(2, 0.1, 0.6), make_report(3, 0.2, 0.6))
        == CONTINUE
    )
    assert scheduler.rungs.values == {1: {0: 0.5, 1: 0.4, 2: 0.6}, 3: {2: 0.6}}  # the best score up to the rung


def test_a_trial_that_reaches_its_last_epoch_is_not_compared(tmp_path: Path, config: SweepConfig):
    journal, scheduler = start_journal(tmp_path, config)
    journal.ask()
    assert report_all(journal, scheduler, 0, make_report(3, 0.1, end_reason="patience")) == CONTINUE
    assert scheduler.rungs.values[3] == {}


def test_a_decision_that_was_not_reported_to_optuna_is_reported_on_reattaching(tmp_path: Path, config: SweepConfig):
    journal, scheduler = start_journal(tmp_path, config)
    journal.ask()
    journal.ask()
    journal.ask()
    report_all(journal, scheduler, 0, make_report(1, 0.5))
    assert report_all(journal, scheduler, 1, make_report(1, 0.1)) == STOP
    report_all(journal, scheduler, 2, make_report(9, 0.5, end_reason="epochs"))
    again, _ = start_journal(tmp_path, config)
    assert [number for number, _ in again.reattach()] == [0]
    states = [trial.state for trial in read_trials(tmp_path)]
    assert states == [TrialState.RUNNING, TrialState.PRUNED, TrialState.COMPLETE]


def test_a_repeated_report_changes_nothing_and_gets_its_decision_again(tmp_path: Path, config: SweepConfig):
    journal, scheduler = start_journal(tmp_path, config)
    journal.ask()
    journal.ask()
    report_all(journal, scheduler, 0, make_report(1, 0.5), make_report(2, 0.6))
    report_all(journal, scheduler, 1, make_report(1, 0.1))
    before = (tmp_path / JOURNAL).read_bytes()
    assert report_all(journal, scheduler, 0, make_report(2, 0.6)) == CONTINUE
    assert report_all(journal, scheduler, 1, make_report(1, 0.1)) == STOP
    assert (tmp_path / JOURNAL).read_bytes() == before
    assert scheduler.rungs.values[1] == {0: 0.5, 1: 0.1}


def test_a_report_recorded_without_its_decision_is_decided_when_repeated(tmp_path: Path, config: SweepConfig):
    """Killed between the two: the restored trial repeats its epoch, and the rung is not skipped."""
    journal, scheduler = start_journal(tmp_path, config)
    journal.ask()
    journal.ask()
    report_all(journal, scheduler, 0, make_report(1, 0.5))
    journal.record(1, make_report(1, 0.4))
    again, scheduler = start_journal(tmp_path, config)
    again.reattach()
    assert report_all(again, scheduler, 1, make_report(1, 0.4)) == STOP


def sweep(run: Path, config: SweepConfig, *, interrupt: tuple[int, ...] = ()) -> list[tuple[Any, ...]]:
    """One trial at a time on a toy objective; the journal is closed and opened again at these trials."""
    journal, scheduler = start_journal(run, config)
    for index in range(config.budget.trials):
        number, values = journal.ask()
        if index in interrupt:
            journal, scheduler = start_journal(run, config)
            [(number, values)] = journal.reattach()
        peak = 1 / (1 + abs(np.log10(values["lr"]) + 3)) + 0.1 * values.get("momentum", 0)
        rows = [
            make_report(epoch, peak * epoch / 9, end_reason="epochs" if epoch == 9 else "") for epoch in range(1, 10)
        ]
        report_all(journal, scheduler, number, *rows)
        journal.tell(number)
    return [(trial.params, trial.state, trial.last_step) for trial in read_trials(run)]


def test_proposals_and_stops_do_not_depend_on_interruptions(tmp_path: Path, config: SweepConfig):
    for name in ("whole", "parts", "other"):
        (tmp_path / name).mkdir()
    whole = sweep(tmp_path / "whole", config)
    assert sweep(tmp_path / "parts", config, interrupt=(0, 4, 5, 11, 19)) == whole
    assert {state for _, state, _ in whole} == {TrialState.COMPLETE, TrialState.PRUNED}
    other = make_sweep_config({**SWEEP, "study": {"trials": 20, "seed": 4}})
    assert sweep(tmp_path / "other", other) != whole


def test_the_default_recipe_is_never_stopped_and_the_journal_says_that_it_would_have_been(
    tmp_path: Path, config: SweepConfig
):
    journal, scheduler = start_journal(tmp_path, config)
    journal.enqueue_first([config.space.default_params()])
    for _ in range(3):
        journal.ask()
    report_all(journal, scheduler, 1, make_report(1, 0.5), make_report(3, 0.5))
    assert report_all(journal, scheduler, 0, make_report(1, 0.4)) == CONTINUE
    resumed, scheduler = start_journal(tmp_path, config)
    resumed.reattach()
    assert report_all(resumed, scheduler, 0, make_report(3, 0.6)) == CONTINUE
    decisions = rung_decisions(resumed.attrs(0))
    assert decisions == {1: RungDecision(0.4, CONTINUE, "default"), 3: RungDecision(0.6, CONTINUE, "default")}
    assert scheduler.rungs.values == {1: {0: 0.4, 1: 0.5}, 3: {1: 0.5}}
    assert report_all(resumed, scheduler, 2, make_report(1, 0.4)) == STOP
    resumed.record(0, make_report(9, 0.7, end_reason="epochs"))
    assert resumed.tell(0) == TrialState.COMPLETE


def test_audited_trials_are_the_same_after_interruptions_and_count_as_finished(tmp_path: Path):
    config = make_sweep_config({**SWEEP, "early_stopping": {**SWEEP["early_stopping"], "audit": 0.4}})
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    assert sweep(tmp_path / "parts", config, interrupt=(0, 4, 5, 11, 19)) == sweep(tmp_path / "whole", config)
    attrs = [[trial.user_attrs for trial in read_trials(tmp_path / name)] for name in ("whole", "parts")]
    kept = [[rung.kept for of in each for rung in rung_decisions(of).values()] for each in attrs]
    assert kept[0] == kept[1]
    audited = [t for t in read_trials(tmp_path / "whole") if any(d.kept for d in rung_decisions(t.user_attrs).values())]
    assert 0 < len(audited) < 12
    assert {(trial.state, trial.last_step) for trial in audited} == {(TrialState.COMPLETE, 9)}


def test_a_score_and_a_cost_are_reported_together_and_stopped_trials_stay_pruned(tmp_path: Path):
    config = make_sweep_config(
        {**SWEEP, "study": {"trials": 20, "metric": ["val_dice_mean", "seconds"]}, "train": {"epochs": 2}}
    )
    (tmp_path / "study.yaml").write_text(dump(config))
    journal, scheduler = start_journal(tmp_path, config)
    for number, (score, seconds) in enumerate([(0.5, 10.0), (0.4, 30.0), (0.6, 30.0), (0.45, 5.0), (0.1, 1.0)]):
        journal.ask()
        reports = [make_report(1, score), make_report(2, score, end_reason="epochs")]
        if report_all(journal, scheduler, number, {**reports[0], "time_this_iter_s": seconds}) != STOP or number in (
            1,
            3,
        ):
            journal.record(number, reports[1])
            journal._running[number].set_user_attr("rungs", {})  # those that are to end by themselves
        journal.tell(number)
    trials = read_trials(tmp_path)
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 4 + [TrialState.PRUNED]
    assert trials[0].values == [0.5, 10.0]
    assert [trial.number for trial in read_run(tmp_path).pareto_front()] == [3, 0, 2]
    for _ in range(12):
        number, _ = journal.ask()
        journal.record(number, {**make_report(2, 0.5, end_reason="epochs"), "time_this_iter_s": 7.0})
        journal.tell(number)


def test_stopped_is_pruned_with_its_last_value_at_its_epoch(tmp_path: Path, config: SweepConfig):
    journal, scheduler = start_journal(tmp_path, config)
    journal.ask()
    journal.ask()
    report_all(journal, scheduler, 0, make_report(1, 0.5), make_report(2, 0.7), make_report(3, 0.6, 0.7))
    assert (
        report_all(journal, scheduler, 1, make_report(1, 0.9), make_report(2, 0.2, 0.9), make_report(3, 0.1, 0.3))
        == STOP
    )
    assert journal.tell(1) == TrialState.PRUNED
    trial = read_trials(tmp_path)[1]
    assert (trial.value, trial.last_step, trial.intermediate_values) == (0.1, 3, {1: 0.9, 2: 0.2, 3: 0.1})


def test_interrupted_stays_running_and_is_handed_out_again(tmp_path: Path, config: SweepConfig):
    journal, scheduler = start_journal(tmp_path, config)
    number, values = journal.ask()
    report_all(journal, scheduler, number, make_report(1, 0.5))
    journal.record(number, make_report(2, 0.6), "run-1/0000/checkpoint_000001")
    assert journal.tell(number) is None
    again, scheduler = start_journal(tmp_path, config)
    assert again.reattach() == [(number, values)]
    assert again.progress(number).checkpoint == "run-1/0000/checkpoint_000001"
    assert scheduler.rungs.values[1] == {0: 0.5}


def test_trials_after_the_startup_wait_for_its_end_if_configured(tmp_path: Path, config: SweepConfig):
    values = {**SWEEP, "searcher": {"startup_trials": 3, "wait_for_startup": True}}
    waiting = make_sweep_config(values).with_record(cache_dir="/cache", attempts=[])

    class Many:
        def count(self) -> int:
            return 100

    journal = Journal(tmp_path, waiting)
    run, storage = Run(RunDir(tmp_path), waiting, []), StorageWatch("")
    searcher = OptunaSearcher(journal, run, Many(), storage)  # type: ignore[arg-type]
    handed = [searcher.suggest(str(index)) for index in range(5)]
    assert [spec and spec["number"] for spec in handed] == [0, 1, 2, None, None]
    assert handed[0]["recipe"]["device"] == "cpu"  # resources.gpu is 0
    for index in range(3):
        journal.record(index, make_report(9, 0.5, end_reason="epochs"))
        searcher.on_trial_complete(str(index))
    assert searcher.suggest("later")["number"] == 3
