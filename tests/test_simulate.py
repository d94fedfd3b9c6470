"""Recorded curves under another stopper, against sweeps that really had that stopper."""

from __future__ import annotations

import json
import os
import runpy
import shutil
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import make_report, report_all, start_journal, voxtune_here

from trainable.core.errors import InputError
from tune.analysis.simulate import Simulation, highest_bar, lowest_bar, simulate
from tune.analysis.simulation_lines import simulation_lines
from tune.run.import_trials import change_space, warm_start
from tune.run.journal_entries import read_entries
from tune.run.results import Run, read_run
from tune.search.asha import cutoff
from tune.search.journal import Journal
from tune.search.journal_file import CREATE_TRIAL
from tune.spec.sections import EarlyStopping

BENCHMARK = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "stop_audit.py"), run_name="stop_audit")
THIRD = {"grace_period": 1, "reduction_factor": 3}
HALF = {"grace_period": 1, "reduction_factor": 2}
MEDIAN = {"type": "median", "grace_period": 2}
PROMOTE = {"type": "promote", **THIRD}


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Run]:
    """A function that runs a sweep of 24 known curves; parallel: how many trials at a time, all by default."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # nothing is killed here, and it takes most of the time

    def run(seed: int, stopping: dict[str, Any], parallel: int = 24) -> Run:
        folder = tmp_path / f"{seed}_{parallel}_{'_'.join(map(str, stopping.values()))}"
        config = BENCHMARK["make_config"](24, 0, stopping)
        return BENCHMARK["run_sweep"](folder, config, BENCHMARK["draw_curves"](24, seed), parallel)

    return run


def settings(stopping: dict[str, Any]) -> list[str]:
    return [f"early_stopping.{name}={value}" for name, value in stopping.items()]


def stops(run: Run) -> dict[int, int | None]:
    return {trial.number: trial.stop_epoch if not trial.kept else None for trial in run.trials}


def simulated(result: Simulation) -> dict[int, int | None]:
    return {trial.recorded.number: trial.stop for trial in result.trials}


@pytest.mark.parametrize(
    "stopping", [THIRD, {**HALF, "audit": 0.3}, MEDIAN, {"type": "none"}, {**PROMOTE, "audit": 0.3}]
)
def test_under_the_recorded_stopper_everything_is_as_recorded(recorded: Any, stopping: dict[str, Any]) -> None:
    run = recorded(0, stopping, parallel=4)
    result = simulate(run, [])
    assert simulated(result) == stops(run)
    assert (result.unsure, result.missing) == ([], [])
    assert result.epochs == (sum(trial.epoch for trial in run.trials),) * 2
    assert not any(trial.stop for trial in result.finished)


@pytest.mark.parametrize(
    "stopping",
    [
        THIRD,
        HALF,
        MEDIAN,
        {**THIRD, "audit": 0.4},
        {**THIRD, "min_trials": 6},
        {**THIRD, "margin": "auto"},
        {**HALF, "value": "recent"},
        {**PROMOTE, "audit": 0.3},
    ],
)
def test_complete_curves_tell_exactly_what_another_stopper_would_have_done(
    recorded: Any, stopping: dict[str, Any]
) -> None:
    whole, real = recorded(1, {"type": "none"}), recorded(1, stopping)
    result = simulate(whole, settings({"type": "asha", **stopping}))
    assert simulated(result) == stops(real)
    assert (result.unsure, result.missing) == ([], [])
    assert result.epochs == (sum(trial.epoch for trial in real.trials),) * 2
    assert len(result.stopped) > 5


@pytest.mark.parametrize(("before", "after"), [(THIRD, HALF), (HALF, THIRD), (MEDIAN, THIRD), (HALF, PROMOTE)])
def test_where_curves_are_missing_the_truth_lies_within_what_is_said(
    recorded: Any, before: dict[str, Any], after: dict[str, Any]
) -> None:
    sure = 0
    for seed in range(4):
        run, truth = recorded(seed, before), stops(recorded(seed, after))
        result = simulate(run, settings({"type": "asha", **after}))
        for trial in result.trials:
            stop, earliest = truth[trial.recorded.number], trial.may_stop
            if trial.goes_on:
                assert stop is None
                sure += 1
            elif trial.stop is not None:
                assert stop is not None
                assert (earliest or trial.stop) <= stop <= trial.stop
                sure += earliest is None
            elif earliest is not None:
                assert stop is None or stop >= earliest
            else:
                assert stop is None or stop > (trial.missing or 0)
        low, high = result.epochs
        assert low <= sum(BENCHMARK["EPOCHS"] if stop is None else stop for stop in truth.values()) <= high
    assert sure > (5 if after == PROMOTE else 20)  # half of the curves end before the rung of a promotion


@pytest.mark.parametrize("kind", ["asha", "median", "promote"])
def test_the_extreme_bars_are_those_of_all_subsets(kind: Any) -> None:
    rng, stopping = np.random.default_rng(0), EarlyStopping(type=kind, min_trials=1)
    for _ in range(200):
        certain, doubtful = (rng.integers(0, 8, rng.integers(0, 6)).astype(float).tolist() for _ in range(2))
        cutoffs = [
            cutoff([*certain, *chosen], stopping)
            for count in range(len(doubtful) + 1)
            for chosen in combinations(doubtful, count)
        ]
        assert cutoff(lowest_bar(certain, doubtful, stopping), stopping) == pytest.approx(min(cutoffs))
        assert cutoff(highest_bar(certain, doubtful, stopping), stopping) == pytest.approx(max(cutoffs))


def test_what_is_lost_saved_and_unknown_is_printed(recorded: Any) -> None:
    """Of these curves the best one is behind at the second rung."""
    run = recorded(7, {"type": "none"})
    result = simulate(run, settings({"type": "asha", **THIRD}))
    shown = simulation_lines(result)
    winner, lost = run.best(), [trial for trial in result.finished if trial.stop]
    assert shown[0] == "early stopping: asha at epochs 1, 3"
    assert shown[2] == f"trained: {result.epochs[0]} epochs, 216 in the recorded sweep"
    assert shown[3] == f"lost: {len(lost)} of the 24 trials that trained to their end"
    rank = result.finished.index(lost[0]) + 1
    first = lost[0].recorded
    assert rank == 1
    assert shown[4] == f"  rank {rank}: trial {first.number}, {first.score:.4f}, stopped at epoch {lost[0].stop}"
    stays = next(trial.recorded for trial in result.finished if trial.stop is None)
    assert shown[-1].startswith(f"best score: {stays.score:.4f} of trial {stays.number}")
    assert shown[-1].endswith(f"the recorded best, {winner.score:.4f} of trial {winner.number}, is stopped")
    none = simulation_lines(simulate(recorded(7, THIRD), ["early_stopping.type=none"]))
    assert none[:2] == ["early stopping: none", "stopped: 0 of 24 trials"]
    assert " trials that may go on where the recorded sweep has no more: " in none[-1]
    assert none[2].startswith("trained: ")
    assert " to 216 epochs, " in none[2]


def test_what_would_be_stopped_but_is_drawn_by_the_audit_is_named(recorded: Any) -> None:
    run = recorded(2, {"type": "none"})
    audited = simulate(run, settings({"type": "asha", **THIRD, "audit": 1.0}))
    stopped = simulate(run, settings({"type": "asha", **THIRD}))
    kept = {trial.recorded.number: trial.kept for trial in audited.trials if trial.kept}
    assert kept == {number: (epoch, "audit") for number, epoch in simulated(stopped).items() if epoch}
    shown = "\n".join(simulation_lines(audited))
    assert shown.count(", drawn by the audit") == 10 < len(kept)
    assert f"  and {len(kept) - 10} more of lower rank" in shown


def test_the_default_recipe_is_not_stopped_and_a_trial_without_a_report_is_unknown(tmp_path: Path) -> None:
    """Trial 1 comes to the rung first, then trial 0, the default; trial 2 has just begun."""
    config = BENCHMARK["make_config"](3, 0, {"type": "none"})
    (tmp_path / "study.yaml").write_text(BENCHMARK["dump"](config))
    journal, scheduler = start_journal(tmp_path, config)
    journal.enqueue_first([config.space.default_params()])
    for _ in range(3):
        journal.ask()
    for number, score in ((1, 0.5), (0, 0.4)):
        report_all(journal, scheduler, number, make_report(1, score), make_report(9, 0.6, end_reason="epochs"))
        journal.tell(number)
    result = simulate(read_run(tmp_path), ["early_stopping.type=asha"])
    assert [trial.kept for trial in result.trials] == [(1, "default"), None, None]
    assert [trial.missing for trial in result.trials] == [None, None, 0]
    assert result.epochs == (18, 27)
    shown = simulation_lines(result)
    assert "  rank 2: trial 0, 0.6000, at epoch 1, the default recipe" in shown
    assert shown[-1] == (
        "unknown: the scores of 1 trial that may go on where the recorded sweep has no more: 1 after epoch 0"
    )


def test_a_run_that_went_on_in_another_space_is_replayed_in_the_order_of_its_reports(tmp_path: Path) -> None:
    """In the new study's journal its trials are there all at once; reports that come after the reading are left out."""
    config = BENCHMARK["make_config"](24, 0, {**HALF, "audit": 0.3})
    curves, rng = BENCHMARK["draw_curves"](24, 0), np.random.default_rng(0)
    (tmp_path / "study.yaml").write_text(BENCHMARK["dump"](config))
    journal, scheduler = start_journal(tmp_path, config)
    epochs = {journal.ask()[0]: 0 for _ in curves}
    while epochs:
        number = int(rng.choice(list(epochs)))
        epochs[number] += 1
        if BENCHMARK["report"](journal, scheduler, number, epochs[number], curves[number]):
            journal.tell(number)
            del epochs[number]
        if len(epochs) == 12:
            early = read_run(tmp_path)
    before = read_run(tmp_path)
    (tmp_path / "other.yaml").write_text(BENCHMARK["dump"](config).replace("1.0e-05", "1.0e-06"))
    change_space(before, str(tmp_path / "other.yaml"), [])  # as if a kill came before study.yaml was written
    changed = change_space(before, str(tmp_path / "other.yaml"), [])
    assert changed.record.study == "voxtune-2"
    result = simulate(early, [])
    assert result.epochs[0] == sum(trial.epoch for trial in early.trials)
    (tmp_path / "study.yaml").write_text(BENCHMARK["dump"](changed))
    result = simulate(read_run(tmp_path), [])
    assert simulated(result) == stops(before)
    assert (result.unsure, result.missing) == ([], [])
    entries = [entry for entry in read_entries(result.run) if entry["op_code"] == CREATE_TRIAL]
    assert [entry["number"] for entry in entries] == list(range(24))


def warm_started(folder: Path, earlier: Run) -> Run:
    """A sweep of 24 other curves that imports the trials of an earlier one."""
    config = BENCHMARK["make_config"](24, 1, HALF)
    folder.mkdir()
    (folder / "study.yaml").write_text(BENCHMARK["dump"](config))
    warm_start(Journal(folder, config), [earlier.folder])
    journal, scheduler = start_journal(folder, config)
    for curve in BENCHMARK["draw_curves"](24, 1):
        number = journal.ask()[0]
        ends = (BENCHMARK["report"](journal, scheduler, number, epoch, curve) for epoch in range(1, 10))
        assert any(ends)
        journal.tell(number)
    return read_run(folder)


def test_an_imported_trial_that_the_audit_kept_sets_no_bar_after_its_stop(recorded: Any, tmp_path: Path) -> None:
    run = warm_started(tmp_path / "run", recorded(0, {**HALF, "audit": 1.0}))
    assert any(trial.kept for trial in run.trials if trial.imported_from)
    expected = {trial.number: trial.stop_epoch for trial in run.own_trials if not trial.kept}
    result = simulate(run, [])
    assert {number: stop for number, stop in simulated(result).items() if number in expected} == expected


def test_with_a_cost_what_imported_trials_had_between_their_rungs_is_unknown(recorded: Any, tmp_path: Path) -> None:
    """The same sweep without a cost has all scores of the imported trials, and so tells the truth."""
    truth = simulate(warm_started(tmp_path / "whole", recorded(0, HALF)), settings(THIRD))
    folder = tmp_path / "cost"
    shutil.copytree(tmp_path / "whole", folder)
    (folder / "study.yaml").write_text(
        (folder / "study.yaml").read_text().replace("metric: val_dice_mean", "metric: [val_dice_mean, seconds]")
    )
    entries = [json.loads(line) for line in (folder / "journal.log").read_text().splitlines()]
    for entry in entries:
        entry.pop("intermediate_values", None)  # of imported trials
    (folder / "journal.log").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    result = simulate(read_run(folder), settings(THIRD))
    assert result.unsure or any(trial.may_stop not in (None, trial.stop) for trial in result.trials)
    for trial, true in zip(result.trials, truth.trials, strict=True):
        if trial.goes_on:
            assert true.stop is None
        elif trial.stop is not None and trial.may_stop is None:
            assert true.stop == trial.stop


@pytest.mark.parametrize("text", ["study.trials=3", "train.epochs=3", "earlystopping.type=none"])
def test_only_the_stopper_can_be_another_one(recorded: Any, text: str) -> None:
    with pytest.raises(
        InputError, match=rf"--set {text}: a simulation changes early stopping only: .* early_stopping.reduction_factor"
    ):
        simulate(recorded(0, THIRD), [text])


def test_the_verb(recorded: Any) -> None:
    run = recorded(0, THIRD)
    done = voxtune_here("simulate", run.folder, "--set", "early_stopping.reduction_factor=2")
    assert done.returncode == 0, done.stderr
    assert "early stopping: asha at epochs 1, 2, 4, 8" in done.stdout
    wrong = voxtune_here("simulate", run.folder, "--set", "early_stopping.reduction_factor=1")
    assert wrong.returncode == 2
    assert "expected" in wrong.stderr + wrong.stdout
