"""The searcher bayes: what it learns from, what it proposes, and how far it trusts a prior."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from helpers import make_report, report_all, start_journal
from optuna.trial import TrialState, create_trial

from tune.search.asha import PAUSE
from tune.search.expected_ends import Curve, ExpectedEnd, ended_curves, expected_ends, validation_noise
from tune.search.journal import Journal
from tune.search.model_proposals import log_expected_improvement
from tune.search.recipe_sampler import MAX_BEST, MAX_LEARNED, ModelSampler, SobolStartupSampler, learned_ends
from tune.search.sampler import make_sampler
from tune.spec.sweep_config import SweepConfig, make_sweep_config

SPACE: dict[str, Any] = {
    "optimizer": {"choice": ["adam", "sgd"]},
    "lr": {"loguniform": [1e-5, 1e-1]},
    "momentum": {"uniform": [0.8, 0.99], "when": {"optimizer": "sgd"}},
}


DIVERGED = Curve(2, (), False)


def config_of(space: dict[str, Any], **searcher: Any) -> SweepConfig:
    return make_sweep_config(
        {
            "space": space,
            "study": {"trials": 500},
            "searcher": {"type": "bayes", "startup_trials": 4, **searcher},
            "early_stopping": {"type": "none"},
            "train": {"epochs": 4},
        }
    )


def quality(values: dict[str, Any], best_lr: float) -> float:
    return 0.9 - 0.1 * abs(math.log10(values["lr"] / best_lr)) - 0.05 * (values.get("optimizer") == "adam")


def sweep(
    folder: Path, config: SweepConfig, trials: int, best_lr: float = 1e-3, diverges: tuple[float, int] = (1.0, 9)
) -> list[dict[str, Any]]:
    """The recipes of a sweep whose trials score by how near their lr is to the best one.

    diverges: those with a higher lr than this diverge in this epoch.
    """
    journal = Journal(folder, config)
    recipes = []
    for _ in range(trials):
        number, values = journal.ask()
        recipes.append(values)
        for epoch in range(1, 5):
            if values["lr"] > diverges[0] and epoch == diverges[1]:
                end: Any = {"epoch": epoch, "best_score": 0, "best_epoch": 0, "end_reason": "non_finite"}
                journal.record(number, end)
                break
            score = quality(values, best_lr) - 0.1 / epoch
            report: Any = {"epoch": epoch, "val_dice_mean": score, "best_score": score, "best_epoch": epoch}
            report |= {f"val_dice_{region}": score for region in ("WT", "TC", "ET")}
            journal.record(number, report | {"end_reason": "epochs" if epoch == 4 else ""})
        journal.tell(number)
    return recipes


def test_it_finds_the_best_region_of_a_space_with_conditions(tmp_path: Path) -> None:
    recipes = sweep(tmp_path, config_of(SPACE), 24)
    last = [quality(values, 1e-3) for number, values in enumerate(recipes) if number >= 16 and number % 4]
    assert np.mean(last) > 0.86  # at most 0.9; an even draw has 0.76 in the mean
    assert all(("momentum" in values) == (values["optimizer"] == "sgd") for values in recipes)


def test_a_resumed_sweep_proposes_what_an_uninterrupted_one_does(tmp_path: Path) -> None:
    for name in ("whole", "resumed"):
        (tmp_path / name).mkdir()
    whole = sweep(tmp_path / "whole", config_of(SPACE), 12)
    sweep(tmp_path / "resumed", config_of(SPACE), 7)
    assert sweep(tmp_path / "resumed", config_of(SPACE), 5) == whole[7:]


@pytest.mark.parametrize("kind", ["bayes", "tpe"])
def test_a_prior_is_dropped_when_the_trials_contradict_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    believed = {"lr": SPACE["lr"] | {"prior": {"at": 0.1, "confidence": "medium"}}}
    with caplog.at_level("INFO"):
        recipes = sweep(tmp_path, config_of(believed, type=kind), 28, best_lr=1e-4)
    assert sum("contradict the prior" in message for message in caplog.messages) == 1
    found = [abs(math.log10(values["lr"] / 1e-4)) for values in recipes[20:]]
    assert np.median(found) < 1


def test_points_of_the_start_up_are_even_once_the_trials_contradict_the_prior(tmp_path: Path) -> None:
    believed = {"lr": SPACE["lr"] | {"prior": {"at": 0.1, "confidence": "high"}}}
    near = []
    for name, best_lr in (("right", 0.1), ("wrong", 1e-5)):
        (tmp_path / name).mkdir()
        recipes = sweep(tmp_path / name, config_of(believed, startup_trials=60), 60, best_lr=best_lr)
        near.append(sum(values["lr"] > 0.03 for values in recipes[20:]))
    assert near[0] > 20  # of 40: two of three points are drawn from the prior
    assert near[1] < 12  # 0.13 of an even draw


@pytest.mark.parametrize("kind", ["bayes", "tpe"])
def test_a_prior_brings_more_trials_near_what_is_believed(tmp_path: Path, kind: str) -> None:
    near = []
    for name, prior in (("even", {}), ("believed", {"prior": {"at": 1e-3, "confidence": "medium"}})):
        (tmp_path / name).mkdir()
        recipes = sweep(tmp_path / name, config_of({"lr": SPACE["lr"] | prior}, type=kind, startup_trials=12), 12)
        near.append(sum(abs(math.log10(values["lr"] / 1e-3)) < 0.7 for values in recipes))
    assert near[1] >= near[0] + 3


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bayes", "tpe"])
def test_no_recipe_of_a_finite_space_is_proposed_twice(tmp_path: Path, kind: str) -> None:
    finite = {"lr": {"choice": [1e-5, 1e-4, 1e-3, 1e-2]}, "dropout": {"quniform": [0.0, 0.3, 0.1]}, "residual": {}}
    finite["residual"] = {"choice": [False, True]}
    config = config_of(finite, type=kind)
    recipes = sweep(tmp_path, config.model_copy(update={"budget": config.budget.model_copy(update={"trials": 31})}), 31)
    assert len({json.dumps(values, sort_keys=True) for values in recipes}) == 31


@pytest.mark.parametrize("kind", ["bayes", "tpe"])
def test_no_recipe_is_proposed_twice_if_an_option_has_a_condition(tmp_path: Path, kind: str) -> None:
    momentum = {"choice": [0.9, 0.99], "when": {"optimizer": "sgd"}}
    finite = {"optimizer": SPACE["optimizer"], "lr": {"choice": [1e-4, 1e-3, 1e-2]}, "momentum": momentum}
    config = config_of(finite | {"residual": {"choice": [False, True]}}, type=kind)
    few = config.budget.model_copy(update={"trials": 13})  # of 18 recipes: trials that exhaust a space are not drawn
    recipes = sweep(tmp_path, config.model_copy(update={"budget": few}), 13)
    assert len({json.dumps(values, sort_keys=True) for values in recipes}) == 13


def test_a_stopped_trial_is_expected_to_gain_what_the_others_gained() -> None:
    whole = [Curve(number, (0.5, 0.6, 0.7, 0.8, 0.8, 0.8), True) for number in range(3)]
    ends = {end.number: end for end in expected_ends([*whole, Curve(3, (0.4, 0.5), False)])}
    assert ends[3].score == pytest.approx(0.5 + 0.2)
    assert ends[3].variance > ends[0].variance


def test_one_that_diverged_is_as_bad_as_the_worst_whatever_it_had_reached() -> None:
    ends = {end.number: end for end in expected_ends([Curve(0, (0.7, 0.8), True), Curve(1, (0.4,), True), DIVERGED])}
    assert (ends[2].score, ends[2].variance) == (0.4, 0.0)
    assert expected_ends([DIVERGED]) == []


def test_failed_trials_and_those_out_of_memory_say_nothing_of_scores() -> None:
    study = optuna.create_study()
    complete, pruned, fail = TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL
    ends = [(complete, "epochs"), (complete, "oom"), (fail, ""), (pruned, ""), (pruned, "non_finite")]
    for state, reason in ends:
        attrs, value = {"progress": {"end_reason": reason}}, 0.5 if state == complete else None
        study.add_trial(create_trial(state=state, value=value, intermediate_values={1: 0.5}, user_attrs=attrs))
    assert ended_curves(study.trials) == [Curve(0, (0.5,), True), Curve(3, (0.5,), False), Curve(4, (), False)]


@pytest.mark.parametrize("diverges_in", [1, 3])
def test_recipes_that_diverge_are_left(tmp_path: Path, diverges_in: int) -> None:
    """Also if they are the best until then: the higher lr, the better."""
    recipes = sweep(tmp_path, config_of({"lr": SPACE["lr"]}), 24, best_lr=1e-1, diverges=(2e-2, diverges_in))
    assert np.mean([values["lr"] > 2e-2 for values in recipes[8:]]) < 0.2  # of even draws 0.17


def test_paused_trials_are_compared_at_their_rung_until_gains_are_known() -> None:
    paused, whole = Curve(0, (0.3, 0.5), False, paused=True), [Curve(n, (0.3, 0.6, *3 * (0.7,)), True) for n in (1, 2)]
    plateau = Curve(3, (0.2,), True)  # out of patience before the rung
    assert [end.score for end in expected_ends([paused, whole[0], plateau])] == [0.5, 0.6, 0.2]
    assert expected_ends([paused, *whole])[0].score > 0.5


def test_it_learns_from_trials_that_pause(tmp_path: Path) -> None:
    config = make_sweep_config(
        {
            "space": {"lr": SPACE["lr"]},
            "study": {"trials": 40},
            "searcher": {"type": "bayes", "startup_trials": 8},
            "early_stopping": {"type": "promote"},
            "train": {"epochs": 9},
        }
    )
    journal, scheduler = start_journal(tmp_path, config)
    for number in range(20):
        score = quality(journal.ask()[1], 1e-3)
        reports = [make_report(epoch, score - 0.1 / epoch) for epoch in (1, 2, 3)]
        assert report_all(journal, scheduler, number, *reports) == PAUSE
    far = [abs(math.log10(journal.values(number)["lr"] / 1e-3)) for number in range(8, 20) if number % 3]
    assert np.mean(far) < 0.4  # of even draws 1


def test_of_many_trials_the_worst_are_not_forgotten() -> None:
    ends = [ExpectedEnd(number, number / 1000, 0.0) for number in range(1000)]
    learned = [end.number for end in learned_ends(ends)]
    assert len(learned) == len(set(learned)) == MAX_LEARNED
    assert learned[:MAX_BEST] == list(range(999, 999 - MAX_BEST, -1))
    assert learned[-1] == 0
    assert [end.number for end in learned_ends(ends[:MAX_LEARNED])] == list(range(MAX_LEARNED))[::-1]


def test_where_early_scores_mislead_a_stopped_trial_says_less() -> None:
    alike = [Curve(number, (0.5, 0.6, 0.7, 0.8, 0.8, 0.8), True) for number in range(4)]
    crossing = [Curve(number, (0.5, 0.6, 0.7, *3 * (0.6 + 0.1 * number,)), True) for number in range(4)]
    stopped = Curve(9, (0.4, 0.5), False)
    sure, unsure = (expected_ends([*curves, stopped])[-1].variance for curves in (alike, crossing))
    assert unsure > 3 * sure


def test_noise_of_validations_is_found_despite_a_trend() -> None:
    rng = np.random.default_rng(0)
    curves = [Curve(n, tuple(0.8 + 0.001 * np.arange(20) + rng.normal(0, 0.01, 20)), True) for n in range(10)]
    assert validation_noise(curves) == pytest.approx(0.01, rel=0.3)
    assert validation_noise(curves[:0]) is None


def test_the_expected_improvement_is_right_also_far_below_the_best() -> None:
    mean, deviation = np.array([-30.0, -5.0, 0.0, 1.0]), np.array([1.0, 0.5, 1.0, 0.2])
    drawn = np.random.default_rng(0).normal(mean[2:], deviation[2:], (10**6, 2))
    log_gain = log_expected_improvement(mean, deviation, 0.5)
    assert np.exp(log_gain[2:]) == pytest.approx(np.maximum(drawn - 0.5, 0).mean(0), rel=0.01)
    assert np.isfinite(log_gain).all()
    assert log_gain[0] < log_gain[1] < log_gain[2] < log_gain[3]


def test_one_proposal_of_three_is_an_even_point(tmp_path: Path) -> None:
    config = config_of(SPACE)
    sweep(tmp_path, config, 8)
    journal = Journal(tmp_path, config)
    kinds = [type(make_sampler(config, number, journal.search_space, journal.trials())) for number in range(9, 12)]
    assert kinds == [SobolStartupSampler, ModelSampler, ModelSampler]
