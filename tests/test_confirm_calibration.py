"""Verdicts on simulated truth; benchmarks/confirm_calibration.py prints the whole table, of more repeats."""

from __future__ import annotations

import pytest
from confirm_calibration import Setting, coverage, coverage_of_predictions, run_races

DRAWS = 1_000


@pytest.mark.parametrize(
    "setting", [Setting(1, 2, 20), Setting(1, 4, 20), Setting(1, 1, 20, folds=5), Setting(1, 3, 20, folds=5)]
)
def test_the_interval_of_two_recipes_contains_the_truth_as_often_as_it_says(setting: Setting):
    assert 0.92 <= coverage(setting, 400, DRAWS) <= 0.98  # 0.95 and nearly three standard errors


@pytest.mark.parametrize("cases", [4, 20])
def test_the_interval_of_two_models_contains_the_truth_as_often_as_it_says(cases: int):
    assert 0.92 <= coverage_of_predictions(cases, 400, DRAWS) <= 0.98


@pytest.mark.slow
@pytest.mark.parametrize("setting", [Setting(1, 4, 4), Setting(2, 3, 20), Setting(2, 1, 20, folds=5)])
def test_where_no_recipe_is_better_a_race_hardly_ever_says_so(setting: Setting):
    assert run_races(setting, 0.0, 200, DRAWS).better <= 0.05


def test_a_race_finds_what_is_better_by_two_deviations_with_fewer_trainings_than_all():
    found = run_races(Setting(1, 4, 20), 0.04, 100, DRAWS)
    assert found.better >= 0.45
    assert found.trainings < 7.8
