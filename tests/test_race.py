"""Races of challengers against the default recipe, replayed from the scores."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from tune.confirmation.race import DEFAULT, ArmScores, Race, confidence_of, race

CHALLENGERS = ("trial 7", "trial 3")


def make_scores(
    means: Mapping[str, float], seeds: int = 4, folds: int = 1, noise: float = 0.01
) -> dict[str, ArmScores]:
    """Scores of each recipe's trainings, 8 cases per fold, around its mean."""
    rng = np.random.default_rng(0)
    return {
        name: [[mean + noise * rng.normal() + noise * rng.normal(size=8) for _ in range(folds)] for _ in range(seeds)]
        for name, mean in means.items()
    }


def train(truth: Mapping[str, ArmScores], seeds: int = 4, **failed: str) -> tuple[Race, dict[str, int]]:
    """Race to the end, each time with one more of the wanted trainings; return the number of trainings per recipe."""
    scores: dict[str, list] = {name: [] for name in truth}
    challengers = [name for name in truth if name != DEFAULT]
    while not (now := race(scores, challengers, seeds, failed)).ended:
        name, index = now.wanted[0]
        assert len(scores[name]) == index
        scores[name].append(truth[name][index])
    assert (now.wanted, now.ahead) == ((), ())
    return now, {name: len(arm) for name, arm in scores.items()}


def test_a_race_begins_with_one_training_of_each_recipe_and_names_those_to_come():
    now = race({}, CHALLENGERS, 3)
    assert now.wanted == ((DEFAULT, 0), ("trial 7", 0), ("trial 3", 0))
    assert now.ahead == tuple((name, index) for index in (1, 2) for name in (DEFAULT, *CHALLENGERS))
    assert (now.ended, now.dropped, now.round) == ("", {}, 1)


def test_without_folds_no_challenger_is_dropped_before_its_second_training():
    scores = make_scores({DEFAULT: 0.8, "trial 7": 0.1, "trial 3": 0.2}, seeds=1)
    now = race(scores, CHALLENGERS, 3)
    assert (now.round, now.alive) == (2, ("trial 3", "trial 7"))
    assert now.wanted == ((DEFAULT, 1), ("trial 3", 1), ("trial 7", 1))
    assert now.ahead[0] == (DEFAULT, 2)


def test_challengers_that_cannot_win_are_dropped_and_the_race_ends_without_any():
    end, trainings = train(make_scores({DEFAULT: 0.8, "trial 7": 0.6, "trial 3": 0.5}))
    assert end.ended == "no challenger is left"
    assert trainings == {DEFAULT: 2, "trial 7": 2, "trial 3": 2}
    assert end.judged == trainings
    assert end.dropped.keys() == {"trial 7", "trial 3"}
    assert end.dropped["trial 7"].startswith("round 2: ")
    assert end.dropped["trial 7"].endswith("likely to be better than the default")


def test_a_challenger_far_behind_another_is_dropped_too():
    end, trainings = train(make_scores({DEFAULT: 0.8, "trial 7": 0.80, "trial 3": 0.9}, noise=0.02), seeds=3)
    assert end.alive == ("trial 3",)
    assert end.dropped["trial 7"].endswith("likely to be better than trial 3")
    assert trainings["trial 7"] < trainings["trial 3"]


def test_the_race_ends_as_soon_as_the_verdict_is_clear():
    end, trainings = train(make_scores({DEFAULT: 0.3, "trial 7": 0.8}, noise=0.002))
    assert (end.ended, end.alive) == ("the verdict is clear", ("trial 7",))
    assert trainings == {DEFAULT: 2, "trial 7": 2}
    assert end.confidence == confidence_of(1, 2, 4) > 0.95


def test_recipes_that_are_alike_are_trained_with_all_seeds():
    means = {DEFAULT: 0.8, "trial 7": 0.805}
    end, trainings = train(make_scores(means, noise=0.02))
    assert (end.ended, trainings) == ("all seeds are trained", {DEFAULT: 4, "trial 7": 4})
    assert end.confidence == 0.95


def test_one_training_per_recipe_ends_the_race_without_a_decision():
    end, trainings = train(make_scores({DEFAULT: 0.1, "trial 7": 0.9}), seeds=1)
    assert (end.ended, trainings) == ("all seeds are trained", {DEFAULT: 1, "trial 7": 1})


def test_with_folds_one_training_per_fold_decides():
    end, trainings = train(make_scores({DEFAULT: 0.8, "trial 7": 0.1}, folds=4))
    assert (end.ended, trainings) == ("no challenger is left", {DEFAULT: 1, "trial 7": 1})


def test_a_recipe_whose_training_failed_is_out_and_the_others_race_as_if_it_had_never_been_there():
    truth = make_scores({DEFAULT: 0.8, "trial 7": 0.80, "trial 3": 0.9}, noise=0.02)
    end, _ = train(truth, **{"trial 3": "diverged at epoch 4"})
    assert end.dropped["trial 3"] == "failed: diverged at epoch 4"
    without, trainings = train({name: truth[name] for name in (DEFAULT, "trial 7")})
    assert (end.alive, end.judged["trial 7"]) == (without.alive, trainings["trial 7"])


def test_a_default_that_failed_ends_the_race():
    now = race({}, CHALLENGERS, 4, {DEFAULT: "out of memory"})
    assert now.ended == "the default failed: out of memory"
    assert now.wanted == ()


def test_trainings_done_ahead_change_no_decision():
    truth = make_scores({DEFAULT: 0.8, "trial 7": 0.80, "trial 3": 0.9}, noise=0.02)
    end, _ = train(truth)
    assert race(truth, ["trial 7", "trial 3"], 4) == end


def test_a_replay_of_the_same_scores_decides_the_same():
    truth = make_scores({DEFAULT: 0.8, "trial 7": 0.81, "trial 3": 0.79}, noise=0.02)
    assert train(truth) == train(truth)


def test_a_race_without_challengers_has_ended():
    assert race({}, (), 4).ended == "no challenger is left"


@pytest.mark.parametrize("challengers", [1, 3])
@pytest.mark.parametrize("seeds", [1, 2, 4, 8, 20])
def test_the_chances_to_err_of_all_looks_and_challengers_sum_up_to_less_than_five_percent(challengers: int, seeds: int):
    rates = [(1 - confidence_of(challengers, number, seeds)) / 2 for number in range(1, seeds + 1)]
    assert sum(rates) * challengers <= 0.0451
    assert rates[-1] * challengers == pytest.approx(0.025)
