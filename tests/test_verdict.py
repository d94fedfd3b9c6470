"""What a confirmation says in words, which recipe it chooses, and its JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np
import pytest

from trainable.core.errors import InputError
from trainable.evaluation.comparison import Comparison
from tune.confirmation.race import DEFAULT, ArmScores, race
from tune.confirmation.status import unconfirmed_text
from tune.confirmation.verdict import Arm, Verdict, describe, make_test_verdict, make_verdict

NAN = float("nan")
TRIAL, OTHER = "trial_0031", "trial_0002"


def make_scores(
    means: Mapping[str, float], seeds: int = 4, noise: float = 0.01
) -> dict[str, dict[str, list[list[np.ndarray]]]]:
    """Scores of each recipe's trainings on 8 cases, of the mean and of a region that is worse by 0.1."""
    rng = np.random.default_rng(0)
    mean = {
        name: [[value + noise * rng.normal() + noise * rng.normal(size=8)] for _ in range(seeds)]
        for name, value in means.items()
    }
    region = {name: [[fold - 0.1 for fold in seed] for seed in arm] for name, arm in mean.items()}
    return {"dice_mean": mean, "dice_ET": region}


def decide(
    scores: Mapping[str, Mapping[str, ArmScores]], *, failed: Mapping[str, str] | None = None, take_best: bool = False
) -> Verdict:
    """The verdict of a race with all of these trainings at hand; trial 31 had 0.9 in the sweep."""
    arms = scores["dice_mean"]
    challengers = [name for name in arms if name != DEFAULT]
    result = race(arms, challengers, max(map(len, arms.values())), failed)
    return make_verdict(scores, "dice_mean", result, sweep_scores={TRIAL: 0.9}, take_best=take_best)


@pytest.mark.parametrize(
    ("comparison", "words"),
    [
        (Comparison(0.0314, 0.012, 0.0494, 0.99, 0, 0), "better than the default by 0.031 [0.012, 0.049]"),
        (Comparison(-0.0314, -0.049, -0.012, 0.01, 0, 0), "worse than the default by 0.031 [0.012, 0.049]"),
        (
            Comparison(0.01, -0.021, 0.04, 0.7, 6, 40),
            "not shown: 0.010 [-0.021, 0.040] against the default; "
            "about 6 more seeds per recipe or 40 more cases would tell",
        ),
        (
            Comparison(0.01, -0.021, 0.04, 0.7, 1, None),
            "not shown: 0.010 [-0.021, 0.040] against the default; about 1 more seed per recipe would tell",
        ),
        (
            Comparison(0.01, -0.021, 0.04, 0.7, None, 1),
            "not shown: 0.010 [-0.021, 0.040] against the default; about 1 more case would tell",
        ),
        (
            Comparison(0.001, -0.021, 0.04, 0.5, None, None),
            "not shown: 0.001 [-0.021, 0.040] against the default; neither more seeds nor more cases would do",
        ),
        (
            Comparison(0.188, -0.753, 1.173, 0.88, 25, None),  # of Dice, which has a limit
            "not shown: 0.188 [-0.753, 1.000] against the default; about 25 more seeds per recipe would tell",
        ),
        (
            Comparison(0.31, NAN, NAN, NAN, None, None),
            "not shown: 0.310 against the default, by one seed per recipe: train at least two",
        ),
    ],
)
def test_the_verdict_in_words(comparison: Comparison, words: str):
    assert describe(comparison, 1 if np.isnan(comparison.low) else 4, "seed") == words


def test_too_few_cases_are_named_as_such():
    comparison = Comparison(0.31, NAN, NAN, NAN, None, None)
    assert describe(comparison, 2, "seed") == "not shown: 0.310 against the default, by too few cases"


@pytest.mark.parametrize(
    ("comparison", "trainings", "text"),
    [
        (
            Comparison(0.357, -0.163, 0.839, 0.94, 2, None),
            3,
            "trial 31 scored 0.357 more than the default, but with 3 seeds each the true difference may be -0.163 "
            "to 0.839; about 2 more seeds per recipe would tell: voxtune confirm RUN --seeds 5; until then the "
            "default is chosen",
        ),
        (
            Comparison(-0.01, -0.04, 0.021, 0.3, 1, None),  # it left the race of three trainings after the first two
            2,
            "trial 31 scored 0.010 less than the default, but with 2 seeds each the true difference may be -0.040 "
            "to 0.021; about 1 more seed per recipe would tell; the default is chosen",
        ),
        (
            Comparison(0.31, NAN, NAN, NAN, None, None),
            1,
            "trial 31 scored 0.310 more than the default, which shows nothing with one seed per recipe: train at "
            "least two; the default is chosen",
        ),
    ],
)
def test_why_a_winner_is_not_confirmed_and_the_command_that_would_tell(
    comparison: Comparison, trainings: int, text: str
):
    arms = (Arm(TRIAL, trainings, {}, {}),)  # the same with folds, of which each seed has several trainings
    words = describe(comparison, trainings, "seed")
    verdict = Verdict("validation", "dice_mean", TRIAL, DEFAULT, "", "", {"dice_mean": comparison}, arms, words)
    assert unconfirmed_text(verdict, seeds=3) == text


def test_a_challenger_that_is_shown_to_be_better_is_the_final_recipe():
    verdict = decide(make_scores({DEFAULT: 0.7, TRIAL: 0.8, OTHER: 0.6}))
    assert (verdict.winner, verdict.chosen, verdict.confirmed) == (TRIAL, TRIAL, True)
    assert verdict.words.startswith("better than the default by 0.1")
    assert verdict.reason == "shown to be better than the default"


def test_where_none_is_shown_to_be_better_the_default_stays_unless_the_best_is_to_be_taken():
    scores = make_scores({DEFAULT: 0.700, TRIAL: 0.708}, noise=0.02)
    verdict = decide(scores)
    assert verdict.words.startswith("not shown: ")
    assert (verdict.winner, verdict.chosen, verdict.confirmed) == (TRIAL, DEFAULT, False)
    assert verdict.comparison is not None
    assert verdict.comparison.difference > 0
    taken = decide(scores, take_best=True)
    assert (taken.chosen, taken.words, taken.confirmed) == (TRIAL, verdict.words, False)
    assert "not shown" in taken.reason


def test_a_challenger_that_is_worse_is_not_taken_as_the_best():
    verdict = decide(make_scores({DEFAULT: 0.8, TRIAL: 0.6}), take_best=True)
    assert (verdict.winner, verdict.chosen, verdict.ended) == (TRIAL, DEFAULT, "no challenger is left")
    assert verdict.words.startswith("worse than the default by 0.190 [")


def test_the_winner_is_one_that_is_still_in_the_race():
    scores = make_scores({DEFAULT: 0.7, TRIAL: 0.8, OTHER: 0.9})
    assert decide(scores, failed={OTHER: "diverged"}).winner == TRIAL


def test_each_recipe_has_the_mean_and_deviation_of_each_score_between_trainings():
    scores = make_scores({DEFAULT: 0.7, TRIAL: 0.71}, noise=0.02)
    verdict = decide(scores)
    by_training = [float(seed[0].mean()) for seed in scores["dice_ET"][TRIAL]]
    default, trial = verdict.arms
    assert (default.name, trial.name, trial.trainings) == (DEFAULT, TRIAL, 4)
    assert trial.mean["dice_ET"] == pytest.approx(np.mean(by_training))
    assert trial.sd["dice_ET"] == pytest.approx(np.std(by_training, ddof=1))
    assert verdict.comparisons["dice_ET"].difference == pytest.approx(trial.mean["dice_ET"] - default.mean["dice_ET"])


def test_the_winners_curse_is_what_the_sweeps_score_had_above_the_confirmed_one():
    verdict = decide(make_scores({DEFAULT: 0.7, TRIAL: 0.8}))
    default, trial = verdict.arms
    assert trial.curse == pytest.approx(0.9 - trial.mean["dice_mean"])
    assert (default.sweep_score, default.curse) == (None, None)


def test_one_training_per_recipe_is_never_a_verdict():
    verdict = decide(make_scores({DEFAULT: 0.1, TRIAL: 0.9}, seeds=1))
    assert verdict.words.startswith("not shown: 0.776 against the default, by one seed per recipe")
    assert (verdict.chosen, verdict.confirmed) == (DEFAULT, False)
    assert np.isnan(verdict.arms[0].sd["dice_mean"])


def test_a_failed_default_leaves_nothing_to_compare_with():
    verdict = decide(make_scores({DEFAULT: 0.1, TRIAL: 0.9}), failed={DEFAULT: "diverged"})
    assert (verdict.words, verdict.chosen) == (
        "not shown: no challenger has a score to compare with the default's",
        DEFAULT,
    )
    assert verdict.reason == "nothing could be compared"
    assert verdict.ended == "the default failed: diverged"
    assert verdict.comparisons == {}


def test_a_verdict_on_test_cases_chooses_nothing():
    scores = make_scores({DEFAULT: 0.7, TRIAL: 0.8})
    verdict = make_test_verdict(scores, "dice_mean", TRIAL)
    assert verdict.words.startswith("better than the default by 0.1")
    assert (verdict.cases, verdict.chosen) == ("test", "")
    assert verdict.reason == "reported only: nothing was selected by the test cases"
    assert [arm.trainings for arm in verdict.arms] == [4, 4]
    once = make_test_verdict(make_scores({DEFAULT: 0.7, TRIAL: 0.8}, seeds=1), "dice_mean", TRIAL)
    assert once.words.endswith("by one training per recipe: train at least two")


def test_a_verdict_on_test_cases_compares_as_many_trainings_of_both():
    scores = make_scores({DEFAULT: 0.7, TRIAL: 0.8})
    scores["dice_mean"][TRIAL] = scores["dice_mean"][TRIAL][:2]
    scores["dice_ET"][TRIAL] = scores["dice_ET"][TRIAL][:2]
    assert make_test_verdict(scores, "dice_mean", TRIAL).arms[0].trainings == 2
    assert make_test_verdict({"dice_mean": {DEFAULT: []}}, "dice_mean", TRIAL).words.startswith("not shown: ")


@pytest.mark.parametrize("seeds", [1, 4])
def test_a_verdict_is_the_same_after_json(seeds: int):
    verdict = decide(make_scores({DEFAULT: 0.7, TRIAL: 0.72, OTHER: 0.6}, seeds=seeds))
    text = json.dumps(verdict.to_json(), allow_nan=False)
    assert repr(Verdict.from_json(json.loads(text))) == repr(verdict)
    assert json.loads(text)["version"] == 1


def test_the_words_of_a_verdict_are_those_of_this_version():
    verdict = decide(make_scores({DEFAULT: 0.7, TRIAL: 0.72}))
    assert Verdict.from_json({**verdict.to_json(), "words": "not shown, as version 0 said it"}) == verdict


def test_a_verdict_of_another_version_is_refused():
    with pytest.raises(InputError, match="version 2"):
        Verdict.from_json({"version": 2})
