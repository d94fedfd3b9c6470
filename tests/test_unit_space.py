"""Recipes as points, many at a time: the same as the space says of each on its own."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from tune.search.unit_space import UnitSpace, bend
from tune.spec.space import Space
from tune.spec.sweep_config import make_sweep_config

SPACE: dict[str, Any] = {
    "optimizer": {"choice": ["adam", "adamw", "sgd"], "prior": {"weights": [1, 1, 3]}},
    "lr": [
        {"when": {"optimizer": "sgd"}, "loguniform": [1e-3, 1e-1], "prior": {"at": 0.01, "confidence": "medium"}},
        {"when": {"optimizer": ["adam", "adamw"]}, "loguniform": [1e-5, 1e-2]},
    ],
    "momentum": {"uniform": [0.8, 0.99], "when": {"optimizer": "sgd"}, "prior": {"at": 0.99, "confidence": "low"}},
    "loss_weights": {"choice": [[1.0, 1.0], [1.0, 2.0], [2.0, 1.0]]},
    "accumulation_steps": {"randint": [1, 4], "prior": {"at": 1, "confidence": "high"}},
    "dropout": {"quniform": [0.0, 0.3, 0.1], "prior": {"at": 0.1, "confidence": "low"}},
    "residual": {"choice": [False, True]},
}


@pytest.fixture
def space() -> Space:
    return make_sweep_config({"space": SPACE}).space


@pytest.mark.parametrize("use_prior", [False, True])
def test_many_recipes_have_the_values_and_log_priors_of_each(space: Space, use_prior: bool) -> None:
    unit, drawn = UnitSpace(space), np.random.default_rng(0).random((300, len(SPACE)))
    points = unit.settle(drawn, use_prior=use_prior)
    for index, shares in enumerate(drawn.tolist()):
        values = unit.recipe(shares, use_prior=use_prior)
        again = unit.recipe(points.shares[index].tolist())
        assert again.keys() == values.keys()
        for name, value in values.items():
            assert again[name] == (pytest.approx(value, rel=1e-9) if isinstance(value, float) else value), name
        assert points.log_priors[index] == pytest.approx(space.log_prior(again), abs=1e-6)
    assert not np.isnan(points.features).any()


def test_a_recipe_is_the_point_of_its_shares(space: Space) -> None:
    unit = UnitSpace(space)
    recipe = {"optimizer": "adam", "lr": 1e-3, "loss_weights": [1.0, 2.0], "accumulation_steps": 2, "dropout": 0.2}
    recipe["residual"] = True
    points = unit.points([recipe])
    assert unit.recipe(points.shares[0].tolist()) == {**recipe, "lr": pytest.approx(1e-3)}
    assert math.isnan(points.shares[0][list(SPACE).index("momentum")])
    assert points.shares[0][list(SPACE).index("lr")] == pytest.approx(2 / 3)  # of Adam's range


def test_all_values_of_a_choice_are_as_far_from_each_other(space: Space) -> None:
    recipe = {"optimizer": "adam", "lr": 1e-3, "accumulation_steps": 2, "dropout": 0.2, "residual": True}
    features = (
        UnitSpace(space).points([{**recipe, "loss_weights": w} for w in SPACE["loss_weights"]["choice"]]).features
    )
    distances = [np.linalg.norm(features[i] - features[j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    assert distances == pytest.approx([1.0, 1.0, 1.0])


@pytest.mark.parametrize("u", [0.0, 1e-9, 0.3, 0.999, 1 - 1e-9])
def test_a_share_is_bent_as_by_the_prior(space: Space, u: float) -> None:
    for parameter in space.parameters:
        for branch in (branch for branch in parameter.branches if branch.prior):
            assert branch.prior is not None
            assert bend(branch, np.array([u]))[0] == pytest.approx(branch.prior.from_unit(branch.kind, u), abs=1e-6)
