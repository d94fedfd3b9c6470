"""The time that a sweep will go on: a range that has the end in it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from eta_coverage import LOADS, looks, slots_of
from optuna.trial import TrialState
from synthetic_run import make_synthetic_run

from tune.analysis.time_left import estimate_time_left, last_end, share_that_passes, trend_of
from tune.run.results import Run, read_run
from tune.search.asha import CONTINUE, PAUSE, RungDecision
from tune.spec.sections import EarlyStopping


@pytest.fixture(scope="module")
def sweeps(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    """Six sweeps of other sizes, rules and seeds, that have ended."""
    folder, found = tmp_path_factory.mktemp("eta"), []
    for seed in range(6):
        changes = [f"study.seed={seed}", "train.epochs=40", "train.val_freq=1", "early_stopping.grace_period=2"]
        changes.append(f"early_stopping.reduction_factor={2 + seed % 3}")
        made = make_synthetic_run(
            folder / str(seed), trials=15 + 6 * seed, gpus=1 + seed % 4, cases=1, overrides=changes
        )
        found.append(read_run(made))
    return found


@pytest.mark.parametrize("load", LOADS)
def test_the_end_lies_within_the_range_in_most_sweeps_whatever_the_load(sweeps: list[Run], load: str) -> None:
    told = [look for run in sweeps for look in looks(run, slots_of(run), LOADS[load])]
    assert len(told) == 18
    inside = sum(low <= left <= high for _, low, high, left in told)
    assert inside >= 13, told
    assert np.median([high / left for _, _, high, left in told]) < 4


def test_nothing_is_told_before_an_epoch_and_little_is_left_at_the_end(sweeps: list[Run]) -> None:
    run = sweeps[0]
    assert estimate_time_left(replace(run, trials=[]), 2) is None
    assert estimate_time_left(run, 2) == (0, 0)


def test_the_default_recipe_that_runs_is_not_expected_to_be_stopped(sweeps: list[Run]) -> None:
    run = sweeps[1]
    default = run.default_trial
    assert default is not None
    going = replace(default, state=TrialState.RUNNING, epoch=2, seconds=120.0, rungs={}, end_reason="")
    rest = [going if trial is default else trial for trial in run.trials]
    left = estimate_time_left(replace(run, trials=rest), 2)
    assert left is not None
    assert left[0] > 15 * 60  # 38 epochs of about a minute


def test_paused_trials_wait_until_the_best_of_them_go_on(sweeps: list[Run]) -> None:
    run = sweeps[0]
    config = run.config.model_copy(
        update={
            "early_stopping": EarlyStopping(type="promote"),
            "budget": run.config.budget.model_copy(update={"trials": 9}),
        }
    )
    rung = 13  # of 40 epochs
    paused = [
        replace(
            trial, state=TrialState.RUNNING, epoch=rung, seconds=rung * 60.0, end_reason="",
            rungs={rung: RungDecision(0.5, PAUSE)},
        )
        for trial in run.trials[:9]
    ]  # fmt: skip
    left = estimate_time_left(replace(run, config=config, trials=paused), 2)
    assert left is not None
    least = 2 * 27 * 60  # a third of nine and the default, two at a time, 27 epochs each
    assert 0.5 * least < left[0] < least < left[1] < 2.5 * least
    going_on = [replace(trial, rungs={rung: RungDecision(0.5, CONTINUE)}) for trial in paused[:2]]
    ended = [replace(trial, state=TrialState.PRUNED) for trial in paused[2:]]
    rest = estimate_time_left(replace(run, config=config, trials=[*going_on, *ended]), 2)
    assert rest is not None
    assert rest[1] < left[1]


def test_the_last_end_is_that_of_the_slots_in_order() -> None:
    assert last_end([10.0, 3.0], [], 2) == 10
    assert last_end([10.0, 3.0], [4.0, 4.0], 2) == 3 + 1 + 4 + 1 + 4
    assert last_end([], [5.0], 2) == 6


def test_the_first_trials_at_a_rung_pass_more_often() -> None:
    asha = EarlyStopping(type="asha", reduction_factor=3)
    shares = [share_that_passes(asha, 0, before) for before in (0, 1, 2, 100)]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] == 1
    assert shares[-1] == pytest.approx(1 / 3, abs=0.01)


def test_a_growing_load_is_expected_to_grow_on_and_a_changing_one_widens_the_range() -> None:
    trend, drift = trend_of(np.geomspace(10, 40, 20), 5)
    steady_trend, steady = trend_of(np.full(20, 10.0), 5)
    assert trend > 0.1
    assert drift > steady
    assert steady_trend == 0


def test_a_look_at_a_thousand_trials_to_come_is_quick(tmp_path: Path) -> None:
    from timeit import timeit

    run = read_run(make_synthetic_run(tmp_path / "run", trials=60, cases=1, overrides=["study.trials=1000"]))
    run = replace(
        run, config=run.config.model_copy(update={"budget": run.config.budget.model_copy(update={"trials": 1000})})
    )
    assert run.trials_left == 940
    assert timeit(lambda: estimate_time_left(run, 8), number=1) < 3
