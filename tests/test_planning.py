"""A plan before a sweep: costs between two measured recipes, simulated sweeps, and what a time has room for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers import SWEEP

from trainable.core.errors import InputError
from tune.analysis.json_output.estimate import estimate_output
from tune.planning.estimate import make_estimate
from tune.planning.forecast import confirmation_seconds, forecast, simulate_sweeps
from tune.planning.recipe_costs import Costs, RecipeCost
from tune.planning.simulated_sweep import CurveStyle, SimulatedSweep, SimulatedTrial, Simulator
from tune.planning.time_plan import GivenTime, NoRoom, check_hours, make_plan, time_text
from tune.run.retention import checkpoint_files
from tune.search.asha import STOP, rung_epochs
from tune.spec.sections import Confirm
from tune.spec.sweep_config import SweepConfig, make_sweep_config
from tune.terminal.estimate_lines import estimate_lines

GIB = 2**30
SMALL = RecipeCost(size=1.0, patch_seconds=0.1, case_seconds=1.0, start_seconds=2.0, memory=4 * GIB)
LARGE = RecipeCost(size=3.0, patch_seconds=0.3, case_seconds=2.0, start_seconds=4.0, memory=10 * GIB)
SAME = Costs(SMALL, SMALL, (1.0,) * 51, patches=100, cases=5, divided_cases=100, device="a GPU", device_memory=16 * GIB)
MIXED = replace(SAME, largest=LARGE, sizes=(1.0, *np.linspace(1, 3, 50)), device_memory=8 * GIB)


def sweep_config(**sections: dict[str, Any]) -> SweepConfig:
    """The sweep of the helpers on GPUs, with changes per section."""
    changed = {name: {**SWEEP.get(name, {}), **values} for name, values in sections.items()}
    return make_sweep_config({**SWEEP, "resources": {"gpu": 1}, **changed})


def run_one(config: SweepConfig, slots: int = 2, costs: Costs = SAME, seed: int = 0) -> SimulatedSweep:
    """One simulated sweep."""
    return Simulator(config, slots, costs, np.random.default_rng(seed)).run()


def test_a_recipe_between_the_two_that_were_measured_costs_what_lies_on_the_line() -> None:
    assert MIXED.epoch_seconds(1.0) == pytest.approx(10)
    assert MIXED.epoch_seconds(2.0) == pytest.approx(20)
    assert MIXED.epoch_seconds(3.0) == MIXED.epoch_seconds(9.0) == pytest.approx(30)
    assert MIXED.epoch_seconds(0.5) == pytest.approx(10)
    assert MIXED.training_seconds(1.0, epochs=10, val_freq=3) == pytest.approx(2 + 10 * 10 + 4 * 5)


def test_the_share_of_recipes_that_does_not_fit_follows_from_the_memory_of_two() -> None:
    assert MIXED.memory_needed(2.0) == 7 * GIB
    assert MIXED.fits(2.3)
    assert not MIXED.fits(2.4)
    assert MIXED.share_that_does_not_fit == pytest.approx(1 / 3, abs=0.05)
    assert SAME.share_that_does_not_fit == 0
    ran_out = replace(MIXED, device_memory=80 * GIB, too_large=(2.9,))
    assert 0 < ran_out.share_that_does_not_fit < 0.1
    on_cpu = replace(MIXED, device_memory=0)
    assert on_cpu.share_that_does_not_fit == 0


def test_without_early_stopping_a_simulated_sweep_trains_every_epoch() -> None:
    config = sweep_config(early_stopping={"type": "none"})
    sweep = run_one(config)
    assert (sweep.trials, sweep.finished, sweep.epochs) == (20, 20, 180)
    assert not sweep.cut


def test_the_rules_of_the_sweep_stop_simulated_trials_and_never_the_default() -> None:
    sweeps = [run_one(sweep_config(), seed=seed) for seed in range(20)]
    assert all(sweep.trials == 20 for sweep in sweeps)
    assert all(1 <= sweep.finished < 20 for sweep in sweeps)
    few = [run_one(sweep_config(early_stopping={"reduction_factor": 9}), seed=seed).epochs for seed in range(20)]
    assert np.mean(few) < np.mean([sweep.epochs for sweep in sweeps]) < 180


def test_in_a_simulated_promotion_the_best_third_and_the_default_go_on() -> None:
    config = sweep_config(early_stopping={"type": "promote"}, study={"trials": 12})
    (rung,) = rung_epochs(config)
    for seed in range(5):
        sweep = run_one(config, seed=seed)
        assert sweep.finished in (4, 5)
        assert sweep.epochs == 12 * rung + sweep.finished * (9 - rung)


def test_patience_ends_simulated_trials() -> None:
    config = sweep_config(early_stopping={"type": "none"}, train={"patience": 1, "epochs": 30})
    assert run_one(config).epochs < 20 * 30


@pytest.mark.parametrize("kind", ["asha", "median"])
def test_a_simulated_trial_whose_patience_ends_at_a_rung_has_ended(kind: str) -> None:
    """It is not decided on there, again and again at the same time."""
    config = sweep_config(early_stopping={"type": kind, "grace_period": 2}, train={"patience": 1})
    simulator = Simulator(config, 1, SAME, np.random.default_rng(0))
    curve = np.array([0.5, 0.4, *[0.6] * 7])
    trial = SimulatedTrial(1, curve, 0.0, 1.0, 1.0, last=simulator.end_of(curve), done=2)
    assert (simulator.decide(trial), simulator.sweep.finished) == (STOP, 1)
    assert simulator.rungs.values == {epoch: {} for epoch in rung_epochs(config)}


@pytest.mark.parametrize("budget", [{"time_budget": 200}, {"gpu_hours": 0.1}])
def test_a_budget_ends_a_simulated_sweep_where_it_would_end_a_real_one(budget: dict[str, float]) -> None:
    sweep = run_one(sweep_config(study=budget))
    assert sweep.cut
    assert sweep.trials < 20
    if "time_budget" in budget:
        assert sweep.seconds == 200
    else:
        assert sweep.trial_seconds == pytest.approx(0.1 * 3600, rel=0.02)
    assert sweep.trial_seconds <= 2 * sweep.seconds


def test_twice_the_gpus_take_about_half_the_time_for_the_same_work() -> None:
    config = sweep_config(early_stopping={"type": "none"})
    one, two = (forecast(config, SAME, slots, slots) for slots in (1, 2))
    assert two.hours.p50 == pytest.approx(one.hours.p50 / 2, rel=0.05)
    assert one.gpu_hours.p50 == pytest.approx(two.gpu_hours.p50, rel=0.02)
    assert one.hours.p10 < one.hours.p50 < one.hours.p90


def test_the_same_sweeps_are_simulated_each_time() -> None:
    assert simulate_sweeps(sweep_config(), MIXED, 2, 3) == simulate_sweeps(sweep_config(), MIXED, 2, 3)


def test_curves_rise_to_a_plateau_and_stay_within_0_and_1() -> None:
    rng = np.random.default_rng(0)
    curves = np.array([CurveStyle.draw(rng).curve(range(1, 51), 0.5, rng) for _ in range(200)])
    assert curves.min() >= 0
    assert curves.max() <= 1
    assert curves[:, 0].mean() < curves[:, 10].mean() < curves[:, -1].mean()


def plan_for(hours: float, config: SweepConfig, given: frozenset[str] = frozenset(), **more: Any) -> Any:
    """The plan for a time on two GPUs."""
    return make_plan(config, SAME, hours * 3600, slots=2, gpus=2, given=given, **more)


@pytest.mark.slow  # over 10 seconds
def test_a_long_time_keeps_the_epochs_and_has_more_trials_than_a_short_one() -> None:
    short, long = plan_for(0.4, sweep_config()), plan_for(1.0, sweep_config())
    assert short.config.fixed("epochs") == long.config.fixed("epochs") == 9
    assert 16 <= short.config.budget.trials < long.config.budget.trials
    assert long.forecast.hours.p90 <= 1.0
    assert long.config.budget.time_budget == 3600
    assert "1 h on 2 GPUs: " in long.text()
    assert f"{long.config.budget.trials} trials of up to 9 epochs, rungs at 1, 3" in long.text()


def test_a_short_time_has_shorter_trials_whose_rungs_and_schedule_follow() -> None:
    config = sweep_config(
        train={"epochs": 90, "step_size": 30, "scheduler": "step"}, early_stopping={"grace_period": 10}
    )
    plan = plan_for(0.7, config)
    epochs = plan.config.fixed("epochs")
    assert epochs < 90
    assert plan.config.early_stopping.grace_period == round(epochs / 9)
    assert plan.config.fixed("step_size") == round(epochs / 3)
    assert plan.config.fixed("scheduler") == "step"


@pytest.mark.slow  # over 10 seconds
def test_values_that_are_given_win_over_the_plan() -> None:
    config = sweep_config(train={"epochs": 90}, early_stopping={"grace_period": 10}, study={"trials": 6})
    assert plan_for(1.0, config, frozenset({"train.epochs"})).config.fixed("epochs") == 90
    assert plan_for(1.0, config, frozenset({"study.trials"})).config.budget.trials == 6
    rungs = plan_for(0.7, config, frozenset({"early_stopping.grace_period"}))
    assert rungs.config.early_stopping.grace_period == 10
    budget = sweep_config(study={"time_budget": 1800})
    assert plan_for(1.0, budget, frozenset({"study.time_budget"})).config.budget.time_budget == 1800
    assert plan_for(1.0, budget).config.budget.time_budget == 3600


@pytest.mark.slow  # over 10 seconds
def test_room_is_left_for_the_confirmation_which_becomes_smaller_if_it_must() -> None:
    config = sweep_config().model_copy(update={"confirm": Confirm()})
    plan = plan_for(2.0, config)
    assert plan.config.confirm == Confirm()
    assert plan.config.budget.time_budget == pytest.approx(7200 - plan.confirm_seconds, abs=0.2)
    assert plan.confirm_seconds == confirmation_seconds(plan.config, SAME, 2, Confirm())
    assert "kept for the confirmation (the best 3 and the default, 4 trainings each at most)" in plan.text()
    less = plan_for(0.4, config)
    assert less.config.confirm is not None
    assert (less.config.confirm.top, less.config.confirm.seeds) < (3, 4)
    kept = plan_for(1.0, config, frozenset({"study.confirm"}))
    assert kept.config.confirm == Confirm()


@pytest.mark.slow  # over 10 seconds
def test_time_that_is_over_before_the_first_trial_counts() -> None:
    plan = plan_for(1.0, sweep_config(), before=1800.0)
    assert plan.config.budget.time_budget == 1800
    assert plan.config.budget.trials < plan_for(1.0, sweep_config()).config.budget.trials


@pytest.mark.parametrize(
    "kind", ["promote", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("asha", "median", "none"))]
)
def test_the_planned_trials_end_in_time_in_9_of_10_simulated_sweeps(kind: str) -> None:
    plan = plan_for(0.8, sweep_config(early_stopping={"type": kind}))
    assert plan.forecast.hours.p90 <= 0.8
    assert plan.forecast.hours.p90 > 0.5
    assert plan.forecast.cut <= 0.2


def test_too_little_time_is_refused_with_the_time_that_is_enough() -> None:
    with pytest.raises(InputError, match=r"--hours 0\.005: no room for 4 trials; give about (\S+) hours or more") as e:
        plan_for(0.005, sweep_config())
    enough = float(str(e.value).partition("about ")[2].split()[0])
    assert plan_for(enough, sweep_config()).config.budget.trials >= 4


@pytest.mark.slow  # over 10 seconds
@pytest.mark.parametrize(("kind", "confirm", "before"), [("asha", Confirm(), 600.0), ("promote", None, 0.0)])
def test_the_time_that_a_refusal_names_is_enough(kind: str, confirm: Confirm | None, before: float) -> None:
    config = sweep_config(early_stopping={"type": kind}, train={"epochs": 40}).model_copy(update={"confirm": confirm})
    with pytest.raises(NoRoom) as error:
        plan_for(0.005, config, before=before)
    enough = float(str(error.value).partition("about ")[2].split()[0])
    plan = plan_for(enough, config, before=before)
    assert plan.config.budget.trials >= 4
    assert plan.config.budget.time_budget + plan.confirm_seconds + before <= enough * 3600 + 1


def test_the_share_of_a_confirmation_is_one_of_the_time_that_is_left() -> None:
    config = sweep_config().model_copy(update={"confirm": Confirm()})
    plan = plan_for(2.0, config, before=5400.0)
    assert plan.confirm_seconds <= 0.4 * 1800


@pytest.mark.slow  # over 10 seconds
def test_a_given_time_budget_limits_the_trials_and_not_the_confirmation() -> None:
    config = sweep_config(study={"time_budget": 1200}).model_copy(update={"confirm": Confirm()})
    plan = plan_for(2.0, config, frozenset({"study.time_budget"}))
    assert plan.config.budget.time_budget == 1200
    assert plan.config.confirm == Confirm()
    assert plan.forecast.hours.p90 <= 1200 / 3600
    short = sweep_config(study={"time_budget": 20})
    with pytest.raises(InputError, match=r"study\.time_budget is 20: no room for 4 trials; give (\d+) s or more"):
        plan_for(2.0, short, frozenset({"study.time_budget"}))


@pytest.mark.slow  # over 10 seconds
def test_given_trials_that_never_fit_are_as_short_as_may_be_and_the_plan_says_how_many_begin() -> None:
    config = sweep_config(train={"epochs": 20}, study={"trials": 30}, early_stopping={"type": "none"})
    plan = plan_for(0.05, config, frozenset({"study.trials"}))
    assert (plan.config.fixed("epochs"), plan.config.budget.trials) == (5, 30)
    begin = round(plan.forecast.trials.p50)
    assert f"the time is too short for all: about {begin} are likely to begin" in plan.text()
    assert "too short" not in plan_for(1.0, sweep_config()).text()


@pytest.mark.slow
def test_the_plan_names_searched_options_of_the_schedule_if_it_cuts_the_epochs() -> None:
    config = sweep_config(train={"epochs": 90, "scheduler": "step"}, space={"step_size": {"randint": [5, 20]}})
    assert plan_for(0.5, config).text().endswith("that are searched keep their ranges: step_size")
    assert "keep their ranges" not in plan_for(0.5, config, frozenset({"train.epochs", "study.trials"})).text()


def test_a_confirmation_takes_at_most_as_long_as_with_the_slower_recipe() -> None:
    config = sweep_config()
    assert confirmation_seconds(config, MIXED, 16, Confirm()) > 2 * confirmation_seconds(config, SAME, 16, Confirm())


@pytest.mark.parametrize(("asked", "patches"), [(100, 100), (0, 80)])
def test_the_folds_of_a_confirmation_are_validated_whole(asked: int, patches: int) -> None:
    config = sweep_config(train={"val_cases": 5, "val_freq": 1, "patches_per_epoch": asked})
    trainings = (3 + 1) * 4 * 5
    each = SMALL.start_seconds + 9 * (patches * SMALL.patch_seconds + 20 * SMALL.case_seconds) + 20 * SMALL.case_seconds
    assert confirmation_seconds(config, SAME, 1, Confirm(folds=5)) == pytest.approx(trainings * each)


def test_a_simulated_trial_is_compared_by_its_recent_scores_if_the_sweep_does_that() -> None:
    simulator = Simulator(sweep_config(early_stopping={"value": "recent"}), 1, SAME, np.random.default_rng(0))
    trial = SimulatedTrial(1, np.array([0.8, 0.5, 0.4, 0.3]), 0.0, 1.0, 1.0, last=3, done=4)
    for epoch, score in enumerate(trial.curve.tolist(), 1):
        simulator.rungs.observe(1, epoch, score)
    assert simulator.value(trial) == pytest.approx(0.4)


@pytest.mark.slow
def test_places_in_which_a_time_is_too_short_are_named_next_to_the_plans() -> None:
    config = sweep_config(train={"epochs": 90})
    words: dict[str, Any] = {"before": 0, "given": frozenset(), "cache_bytes": 0}
    found = make_estimate(config, SAME, [(1, 1), (8, 8)], seconds=400.0, **words)
    assert [plan.gpus for plan in found.plans] == [forecast.gpus for forecast in found.forecasts] == [8]
    text = " ".join(" ".join(estimate_lines(found)).split())
    assert "on 1 GPU: no room for 4 trials; give about " in text
    assert "a retraining of the YAML's 90 epochs: " in text
    assert estimate_output(found).no_room == list(found.no_room)
    with pytest.raises(NoRoom, match=r"--hours 0\.00278: on 8 GPUs: no room for 4 trials"):
        make_estimate(config, SAME, [(1, 1), (8, 8)], seconds=10.0, **words)


@pytest.mark.parametrize("hours", [0.0, -1.0, float("nan"), float("inf")])
def test_hours_that_are_no_time_are_refused(hours: float) -> None:
    with pytest.raises(InputError, match="expected a number of hours above 0, such as 12 or"):
        check_hours(hours)


def test_time_left_of_a_given_time_is_counted_from_its_start() -> None:
    import time

    assert GivenTime(1.0, time.monotonic() - 600).left() == pytest.approx(3000, abs=5)
    assert GivenTime(0.1, time.monotonic() - 600).left() == 1.0


def test_times_are_told_as_people_say_them() -> None:
    assert [time_text(s) for s in (40, 119, 1500, 6000, 43200)] == ["40 s", "2 min", "25 min", "1:40 h", "12 h"]


@pytest.mark.parametrize("seconds", [None, pytest.param(3600.0, marks=pytest.mark.slow)])
def test_an_estimate_is_told_in_80_columns(seconds: float | None) -> None:
    config = sweep_config().model_copy(update={"confirm": Confirm()})
    places = [(1, 1), (2, 2), (8, 8), (0, 0)]
    found = make_estimate(config, MIXED, places, seconds=seconds, before=0, given=frozenset(), cache_bytes=3 * GIB)
    lines = estimate_lines(found)
    text = "\n".join(lines)
    assert max(map(len, lines)) <= 80
    assert "the largest recipe: an epoch of 100 patches 30 s, a validation of 5 cases 10 s" in text
    assert "% of the recipes drawn from the space are expected not to fit" in text
    confirmation = "a confirmation (the best 3 and the default, 4 seeds): at most 16 trainings"
    assert (confirmation in " ".join(text.split())) == (seconds is None)  # a plan tells of its own
    most = max((plan.config.budget.trials for plan in found.plans), default=20)
    assert found.checkpoints[0] == checkpoint_files(sweep_config(study={"trials": most}), 8)[0]
    assert "cache 3.0 GiB" in text
    assert len([line for line in lines if line.startswith(("   1 ", "   2 ", "   8 "))]) == 3
    assert ("1 h on 8 GPUs: " in text) == (seconds is not None)
