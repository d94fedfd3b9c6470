"""Promotion without a cluster: trials pause at one rung and the best go on, with the same decisions after any kill."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers import SWEEP, make_report, report_all, start_journal
from optuna.trial import TrialState

from tune.analysis.trial_detail import reason
from tune.driver.scheduling.searcher import OptunaSearcher
from tune.driver.scheduling.storage_watch import StorageWatch
from tune.report.rungs import rungs_section
from tune.report.sweep_data import read_sweep
from tune.report.sweep_report import sweep_facts
from tune.run.journal_entries import read_entries
from tune.run.results import read_run
from tune.run.verify_decisions import check_decisions
from tune.search.asha import CONTINUE, PAUSE, STOP, RungDecision, Rungs, rung_epochs
from tune.search.journal import Journal, read_trials
from tune.search.sampler_storage import as_sampled
from tune.search.trial_progress import rung_decisions
from tune.spec.sweep_config import SweepConfig, make_sweep_config
from tune.spec.sweep_file import dump
from tune.terminal.status import print_status
from tune.terminal.sweep_screen import sweep_screen

SCORES = (0.2, 0.5, 0.1, 0.7, 0.3, 0.6, 0.4)  # of seven trials at the rung


class Many:
    """Slots for all trials."""

    def count(self) -> int:
        return 100


def with_promotion(trials: int = 7, train: dict[str, Any] | None = None, **stopping: object) -> SweepConfig:
    return make_sweep_config(
        {
            **SWEEP,
            "study": {"trials": trials, "seed": 3},
            "early_stopping": {"type": "promote", **stopping},
            "train": train or {"epochs": 9},
        }
    )


def open_sweep(folder: Path, config: SweepConfig) -> tuple[Journal, Any, OptunaSearcher]:
    """As a launch or resume of a run does."""
    config = config.with_record(cache_dir="/cache", attempts=[])
    (folder / "study.yaml").write_text(dump(config))
    journal, scheduler = start_journal(folder, config)
    journal.enqueue_first([config.space.default_params()])
    searcher = OptunaSearcher(journal, read_run(folder), Many(), StorageWatch(""))  # type: ignore[arg-type]
    return journal, scheduler, searcher


def to_the_rung(folder: Path, config: SweepConfig, scores: tuple[float, ...] = SCORES) -> tuple[Journal, Any, Any]:
    """A sweep whose trials all pause at epoch 3, with these scores."""
    journal, scheduler, searcher = open_sweep(folder, config)
    for number, score in enumerate(scores):
        assert searcher.suggest(str(number))["number"] == number
        reports = [make_report(epoch, score * epoch / 3) for epoch in (1, 2, 3)]
        assert report_all(journal, scheduler, number, *reports) == PAUSE
        searcher.on_trial_complete(str(number))
    return journal, scheduler, searcher


def decided(folder: Path) -> dict[int, RungDecision]:
    return {trial.number: rung_decisions(trial.user_attrs)[3] for trial in read_trials(folder)}


def wrong(folder: Path) -> list[str]:
    run = read_run(folder)
    return list(check_decisions(run.config, read_trials(folder), read_entries(run)))


@pytest.mark.parametrize(
    ("train", "stopping", "expected"),
    [
        ({"epochs": 9}, {}, (3,)),
        ({"epochs": 100, "val_freq": 5}, {}, (35,)),
        ({"epochs": 100, "val_freq": 5}, {"reduction_factor": 4}, (25,)),
        ({"epochs": 100, "val_freq": 5}, {"grace_period": 50}, (50,)),
        ({"epochs": 4, "val_freq": 2}, {}, (2,)),
        ({"epochs": 1}, {}, ()),
    ],
)
def test_the_rung_is_the_validated_epoch_next_to_a_third(train: Any, stopping: Any, expected: tuple[int, ...]):
    assert rung_epochs(with_promotion(train=train, **stopping)) == expected


@pytest.mark.parametrize(("trials", "promoted"), [(1, 1), (2, 1), (3, 1), (4, 2), (7, 3), (9, 3), (10, 4), (30, 10)])
def test_a_third_of_the_trials_is_promoted_rounded_up(trials: int, promoted: int):
    rungs = Rungs(with_promotion())
    for number in range(trials):
        rungs.add(number, 3, rungs.decide(number, 3, 0.01 * (number + 1)))
    decisions = [rungs.decide_paused(number, 3, 0.01 * (number + 1)).decision for number in range(trials)]
    assert decisions == [STOP] * (trials - promoted) + [CONTINUE] * promoted


def test_trials_pause_and_when_all_are_there_the_best_go_on_first_and_the_others_are_stopped(tmp_path: Path):
    journal, scheduler, searcher = to_the_rung(tmp_path, with_promotion())
    assert searcher.remaining == 0
    assert {trial.status for trial in read_run(tmp_path).trials} == {"paused"}
    assert {trial.state for trial in read_trials(tmp_path)} == {TrialState.RUNNING}
    noted = []
    searcher.promote(lambda number, epoch, decision: noted.append((number, epoch, decision.decision)))
    assert [number for number, _, _ in noted] == [3, 5, 1, 6, 4, 0, 2]
    assert [number for number, _, decision in noted if decision == CONTINUE] == [3, 5, 1, 0]  # 0 is the default recipe
    assert [searcher.suggest(f"again {index}")["number"] for index in range(4)] == [3, 5, 1, 0]
    assert searcher.suggest("last") == "FINISHED"
    states = [trial.state for trial in read_trials(tmp_path)]
    assert [number for number, state in enumerate(states) if state == TrialState.PRUNED] == [2, 4, 6]
    decisions = decided(tmp_path)
    assert (decisions[6].needed, decisions[6].among, decisions[0].kept) == (0.5, 6, "default")
    assert report_all(journal, scheduler, 3, make_report(3, 0.7)) == CONTINUE  # a restored trial repeats it
    assert report_all(journal, scheduler, 3, make_report(4, 0.8), make_report(9, 0.9, end_reason="epochs")) == CONTINUE
    searcher.on_trial_complete("again 0")
    assert read_trials(tmp_path)[3].value == 0.9
    assert wrong(tmp_path) == []


@pytest.mark.parametrize("killed_after", range(8))
def test_a_kill_between_two_decisions_changes_none_of_them(tmp_path: Path, killed_after: int):
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    config = with_promotion(audit=0.5)
    to_the_rung(tmp_path / "whole", config)[2].promote(lambda *_: None)
    searcher, made = to_the_rung(tmp_path / "parts", config)[2], []

    def note(number: int, *_: object) -> None:
        made.append(number)
        if len(made) > killed_after:
            raise KeyboardInterrupt

    if killed_after < len(SCORES):
        with pytest.raises(KeyboardInterrupt):
            searcher.promote(note)
    _, _, searcher = open_sweep(tmp_path / "parts", config)
    searcher.promote(lambda *_: None)
    assert decided(tmp_path / "parts") == decided(tmp_path / "whole")
    kept = {number for number, decision in decided(tmp_path / "whole").items() if decision.decision == CONTINUE}
    assert {number for number, _ in searcher.interrupted} == kept > {1, 3, 5, 0}
    assert wrong(tmp_path / "parts") == []


def test_a_trial_that_is_not_there_yet_is_waited_for_and_one_that_ends_before_is_not(tmp_path: Path):
    journal, scheduler, searcher = open_sweep(tmp_path, with_promotion(trials=3))
    for number in range(3):
        searcher.suggest(str(number))
    assert report_all(journal, scheduler, 1, make_report(3, 0.5)) == PAUSE
    searcher.on_trial_complete("1")
    journal, scheduler, searcher = open_sweep(tmp_path, with_promotion(trials=3))  # as a resume after a kill
    searcher.promote(lambda *_: None)
    assert [number for number, _ in searcher.interrupted] == [0, 2]
    for number, word in ((0, "a"), (2, "b")):
        assert searcher.suggest(word)["number"] == number
    journal.record(0, make_report(2, 0.1, end_reason="patience"))
    searcher.on_trial_complete("a")
    journal.record_error(2, "ValueError: boom")
    searcher.on_trial_complete("b", error=True)
    assert [trial.status for trial in read_run(tmp_path).trials] == ["out of patience", "paused", "failed"]
    searcher.promote(lambda *_: None)
    assert searcher.suggest("c")["number"] == 1
    assert wrong(tmp_path) == []


def test_more_trials_are_compared_with_all_that_stood_at_the_rung(tmp_path: Path):
    to_the_rung(tmp_path, with_promotion())[2].promote(lambda *_: None)
    journal, scheduler, searcher = open_sweep(tmp_path, with_promotion(trials=9))
    for number in (0, 1, 3, 5):
        assert searcher.suggest(str(number))["number"] == number
        report_all(journal, scheduler, number, make_report(9, 0.9, end_reason="epochs"))
        searcher.on_trial_complete(str(number))
    for number, score in ((7, 0.65), (8, 0.55)):
        assert searcher.suggest(str(number))["number"] == number
        assert report_all(journal, scheduler, number, make_report(3, score)) == PAUSE
        searcher.on_trial_complete(str(number))
    searcher.promote(lambda *_: None)
    assert {number: decision.decision for number, decision in decided(tmp_path).items() if number > 6} == {
        7: CONTINUE,
        8: STOP,
    }
    assert wrong(tmp_path) == []


def test_paused_trials_are_shown_as_such(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    to_the_rung(tmp_path, with_promotion(trials=8))
    run = read_run(tmp_path)
    print_status(run)
    shown = capsys.readouterr().out
    assert "7 of 8 trials started: 7 paused" in shown
    assert shown.count(" paused ") == 7
    assert f"no process drives it now; go on with: voxtune resume {tmp_path}" in shown
    screen = sweep_screen(run, None, [], 100, 30, now=0.0)
    assert [str(line).split()[0] for line in screen.renderables if " paused" in str(line)][2:] == list("3516402")
    assert reason(run, run.trial(3)) == "paused at epoch 3 of 9 until all trials are there; the best ones go on then"
    data = read_sweep(run, anonymous=True)
    assert "0 running" not in dict(sweep_facts(data))["trials"]
    assert "7 paused" in dict(sweep_facts(data))["trials"]
    section = rungs_section(data)
    assert section is not None
    assert section.lead == "Trials pause at the rung until all are there; the best 1 in 3 goes on."


def test_samplers_see_paused_trials_as_stopped_ones(tmp_path: Path):
    """Else TPE would not begin to learn before all trials are at the rung."""
    journal, _, searcher = to_the_rung(tmp_path, with_promotion(trials=20))
    seen = []
    original = journal.study.get_trials

    def get_trials(*args: Any, **kwargs: Any) -> Any:
        seen.append([trial.state for trial in original(*args, **kwargs)])
        return original(*args, **kwargs)

    journal.study.get_trials = get_trials  # type: ignore[method-assign]
    searcher.suggest("7")
    assert type(journal.study.sampler).__name__ == "MemoryAwareTPESampler"
    assert [TrialState.PRUNED] * 7 in seen
    assert [trial.state for trial in original()] == [TrialState.RUNNING] * 8
    frozen = read_trials(tmp_path)[3]
    assert as_sampled(frozen).last_step == 3
    assert as_sampled(frozen).intermediate_values[3] == pytest.approx(0.7)


def test_a_wait_for_the_startup_trials_ends_when_they_pause(tmp_path: Path):
    values = {
        **SWEEP,
        "searcher": {"startup_trials": 3, "wait_for_startup": True},
        "early_stopping": {"type": "promote"},
    }
    journal, scheduler, searcher = open_sweep(tmp_path, make_sweep_config(values))
    for number in range(3):
        searcher.suggest(str(number))
    assert searcher.suggest("3") is None
    for number in range(3):
        report_all(journal, scheduler, number, make_report(3, 0.5))
        searcher.on_trial_complete(str(number))
    assert searcher.suggest("3")["number"] == 3


def test_verify_finds_a_promotion_that_the_scores_do_not_explain_or_that_came_early(tmp_path: Path):
    journal, scheduler, searcher = open_sweep(tmp_path, with_promotion(trials=3))
    for number in range(3):
        searcher.suggest(str(number))
    for number, score in ((1, 0.5), (2, 0.6)):
        report_all(journal, scheduler, number, make_report(3, score))
    journal.record_rung(1, 3, RungDecision(0.5, CONTINUE, "", 0.4, 1))
    early, unexplained = wrong(tmp_path)
    assert early == "trial 1 at rung 3 was decided on while trials [0] had not come there"
    assert unexplained.startswith("trial 1 at rung 3: CONTINUE with 0.5, not STOP; the rung had {1: 0.5, 2: 0.6}")
