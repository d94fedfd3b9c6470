"""The difference of two recipes, or of two models: its interval, its probability, and what more would tell."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import t, ttest_ind, ttest_rel

from trainable.evaluation.comparison import Comparison, compare_predictions, compare_recipes

Floats = NDArray[np.float64]


def draw_scores(
    seed: int, trainings: int, cases: int, mean: float = 0.6, training: float = 0.02, case: float = 0.03
) -> Floats:
    """Scores (trainings, cases) of a recipe, with these deviations between trainings, and between cases."""
    rng = np.random.default_rng(seed)
    return mean + training * rng.normal(size=(trainings, 1)) + case * rng.normal(size=cases) + np.zeros((1, cases))


def same_numbers(a: Comparison, b: Comparison) -> bool:
    """Whether two comparisons are equal up to rounding."""
    return np.allclose([a.difference, a.low, a.high, a.probability], [b.difference, b.low, b.high, b.probability])


def test_where_cases_do_not_vary_the_interval_is_welchs_of_the_trainings():
    first, second = draw_scores(1, 12, 6, 0.65, 0.03, case=0), draw_scores(2, 9, 6, 0.6, 0.01, case=0)
    expected = ttest_ind(first.mean(1), second.mean(1), equal_var=False).confidence_interval()
    found = compare_recipes([first], [second])
    half = (expected.high - expected.low) / 2
    assert found.difference == pytest.approx(first.mean() - second.mean())
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.06 * half)


def test_where_trainings_do_not_vary_the_interval_is_that_of_paired_cases():
    first, second = draw_scores(1, 3, 40, 0.62, training=0), draw_scores(2, 3, 40, training=0)
    expected = ttest_rel(first[0], second[0]).confidence_interval()
    half = (expected.high - expected.low) / 2
    for found in (compare_recipes([first], [second]), compare_predictions(first[0], second[0])):
        assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.06 * half)


def test_with_one_training_per_fold_the_interval_is_that_of_the_folds_differences():
    rng = np.random.default_rng(4)
    second = [rng.normal(0.6, 0.1, (1, 5)) for _ in range(8)]
    differences = rng.normal(0.02, 0.03, 8)
    first = [fold + difference for fold, difference in zip(second, differences, strict=True)]
    half = t.ppf(0.975, 7) * differences.std(ddof=1) / np.sqrt(8)
    found = compare_recipes(first, second)
    assert found.difference == pytest.approx(differences.mean())
    assert (found.low, found.high) == pytest.approx((found.difference - half, found.difference + half), abs=0.08 * half)


def test_how_hard_a_case_is_does_not_matter_since_cases_are_paired():
    first, second = draw_scores(1, 3, 20), draw_scores(2, 4, 20)
    hard = np.random.default_rng(3).normal(0, 0.2, 20)
    assert same_numbers(compare_recipes([first], [second]), compare_recipes([first + hard], [second + hard]))
    a, b = compare_predictions(first[0], second[0]), compare_predictions(first[0] + hard, second[0] + hard)
    assert same_numbers(a, b)


def test_noise_that_differs_between_all_trainings_and_cases_is_counted_once():
    widths = []
    for seed in range(20):
        first, second = 0.05 * np.random.default_rng(seed).normal(size=(2, 8, 40))
        found = compare_recipes([first], [second], draws=1_000)
        widths.append(found.high - found.low)
    assert np.mean(widths) == pytest.approx(2 * 2 * 0.05 * np.sqrt(2 / (8 * 40)), rel=0.25)  # twice: 41 % more


def test_a_mean_over_folds_counts_each_case_once():
    first, second = [np.full((2, 1), 0.9), np.full((2, 3), 0.5)], [np.full((2, 1), 0.5), np.full((2, 3), 0.5)]
    assert compare_recipes(first, second).difference == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("trainings", "folds", "cases"), [(1, 1, 20), (1, 2, 20), (2, 1, 1), (2, 2, 1)], ids=str
)  # the cases are per fold
def test_without_repeats_nothing_is_shown_however_large_the_difference(trainings: int, folds: int, cases: int):
    first = [draw_scores(fold, trainings, cases, 0.9) for fold in range(folds)]
    second = [draw_scores(9 + fold, trainings, cases, 0.1) for fold in range(folds)]
    found = compare_recipes(first, second)
    assert found.verdict == "not shown"
    assert np.isnan([found.low, found.high, found.probability]).all()
    assert (found.more_trainings, found.more_cases) == (None, None)
    assert found.difference == pytest.approx(0.8, abs=0.2)


def test_one_case_tells_nothing_about_two_models():
    found = compare_predictions(np.array([0.9]), np.array([0.1]))
    assert found.verdict == "not shown"
    assert found.difference == pytest.approx(0.8)


def test_equal_scores_are_not_shown_to_differ():
    scores = draw_scores(1, 3, 10)
    for found in (compare_recipes([scores], [scores]), compare_predictions(scores[0], scores[0])):
        assert (found.difference, found.verdict, found.more_cases) == (0, "not shown", None)
        assert found.probability == pytest.approx(0.5, abs=0.02)


def test_scores_without_any_noise_give_an_interval_of_one_point():
    found = compare_recipes([np.full((2, 4), 0.75)], [np.full((2, 4), 0.5)])
    assert (found.low, found.high, found.probability, found.verdict) == (0.25, 0.25, 1, "better")


def test_the_same_seed_gives_the_same_numbers_and_another_nearly_so():
    first, second = [draw_scores(1, 4, 20, 0.62)], [draw_scores(2, 4, 20)]
    found, other = compare_recipes(first, second), compare_recipes(first, second, seed=1)
    assert found == compare_recipes(first, second)
    assert found.low != other.low
    assert other.low == pytest.approx(found.low, abs=0.05 * (found.high - found.low))


def test_swapped_recipes_have_the_mirrored_interval():
    first, second = [draw_scores(1, 4, 20, 0.65)], [draw_scores(2, 4, 20)]
    found, swapped = compare_recipes(first, second), compare_recipes(second, first)
    assert swapped.difference == -found.difference
    width = found.high - found.low
    assert (-swapped.high, -swapped.low) == pytest.approx((found.low, found.high), abs=0.05 * width)
    assert 1 - swapped.probability == pytest.approx(found.probability, abs=0.02)


def test_the_probability_agrees_with_the_interval():
    for mean in (0.55, 0.6, 0.65, 0.7):
        found = compare_recipes([draw_scores(1, 4, 20, mean)], [draw_scores(2, 4, 20)])
        assert (found.probability > 0.975) == (found.verdict == "better")
        assert (found.probability < 0.025) == (found.verdict == "worse")


def test_more_confidence_gives_a_wider_interval():
    first, second = [draw_scores(1, 4, 20)], [draw_scores(2, 4, 20)]
    low, middle, high = (compare_recipes(first, second, confidence=each) for each in (0.8, 0.95, 0.99))
    assert high.low < middle.low < low.low < low.high < middle.high < high.high


def test_so_many_more_trainings_would_tell_if_trainings_are_the_noise():
    values = np.array([-0.02, -0.01, 0.01, 0.02])  # of trainings, in both recipes
    second = 0.6 + np.repeat(values[:, None], 5, 1)
    found = compare_recipes([second + 0.012], [second])
    assert found.verdict == "not shown"
    deviation = values.std(ddof=1)
    tells = [n for n in range(4, 99) if t.ppf(0.975, 2 * n - 2) * deviation * np.sqrt(2 / n) < 0.012]
    assert found.more_trainings == tells[0] - 4
    assert found.more_cases is None


def test_so_many_more_cases_would_tell_if_cases_are_the_noise():
    differences = np.array([-0.05, -0.02, 0.0, 0.02, 0.05]) + 0.01
    second = np.full((2, 5), 0.6)
    deviation = differences.std(ddof=1)
    tells = [n for n in range(5, 999) if t.ppf(0.975, n - 1) * deviation / np.sqrt(n) < 0.01]
    for found in (
        compare_recipes([second + differences], [second]),
        compare_predictions(second[0] + differences, second[0]),
    ):
        assert found.verdict == "not shown"
        assert found.more_cases == tells[0] - 5
        assert found.more_trainings is None


def test_more_of_either_is_not_needed_once_it_is_shown():
    found = compare_recipes([draw_scores(1, 4, 20, 0.9)], [draw_scores(2, 4, 20)])
    assert (found.verdict, found.more_trainings, found.more_cases) == ("better", 0, 0)
    models = compare_predictions(np.linspace(0.8, 0.9, 20), np.linspace(0.5, 0.61, 20))
    assert (models.verdict, models.more_trainings, models.more_cases) == ("better", None, 0)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(0.01, 0.02, "better"), (-0.02, -0.01, "worse"), (-0.01, 0.01, "not shown"), (0.0, 0.1, "not shown")],
)
def test_the_verdict_is_whether_the_interval_excludes_zero(low: float, high: float, verdict: str):
    found = compare_predictions(np.zeros(3), np.zeros(3))
    assert replace(found, low=low, high=high).verdict == verdict
