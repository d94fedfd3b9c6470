"""Priors: shares of a range and densities, against each other and against draws; what a YAML may say of one."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from tune.spec.kinds import Choice, Kind, LogUniform, QUniform, RandInt, Uniform
from tune.spec.prior import NumberPrior, Prior, WeightsPrior
from tune.spec.space import ConfigErrors
from tune.spec.space_reader import read_space

PRIORS: list[tuple[Kind, Prior]] = [
    (Uniform(0.8, 0.99), NumberPrior(0.99, "medium")),
    (LogUniform(1e-5, 1e-1), NumberPrior(1e-2, "high")),
    (LogUniform(1e-5, 1e-1), NumberPrior(1e-5, "low")),
    (RandInt(1, 10), NumberPrior(9, "medium")),
    (RandInt(1, 2**53), NumberPrior(2**52, "high")),
    (QUniform(0.0, 2.0, 0.25), NumberPrior(0.0, "high")),
    (Choice(("adam", "adamw", "sgd")), WeightsPrior((1.0, 1.0, 3.0))),
    (Choice(([1.0, 1.0], [1.0, 2.0])), WeightsPrior((0.001, 2.0))),
]


@pytest.mark.parametrize(("kind", "_prior"), PRIORS)
def test_the_share_of_a_value_leads_back_to_it(kind: Kind, _prior: Prior) -> None:
    for u in np.linspace(0, 1, 200, endpoint=False):
        value = kind.from_unit(float(u))
        assert 0 <= kind.to_unit(value) <= 1
        again = kind.from_unit(min(kind.to_unit(value), 1 - 2**-53))
        assert again == (pytest.approx(value) if kind.continuous or kind.count > 1e9 else value)


@pytest.mark.parametrize(("kind", "prior"), PRIORS)
def test_draws_have_the_density_that_a_prior_claims(kind: Kind, prior: Prior) -> None:
    """As many of even draws through from_unit fall into each part of the range as the density adds up to there."""
    draws = [prior.from_unit(kind, (index + 0.5) / 4000) for index in range(4000)]
    assert draws == sorted(draws)
    assert all(0 <= share < 1 for share in draws)
    bins = int(kind.count) if kind.count < 100 else 20
    expected = np.zeros(bins)
    for index in range(bins * 50):
        share = (index + 0.5) / (bins * 50)
        expected[index // 50] += math.exp(prior.log_density(kind, kind.from_unit(share))) / (bins * 50)
    counted, _ = np.histogram(draws, bins, (0, 1))
    assert expected.sum() == pytest.approx(1, abs=1e-3)
    assert np.abs(counted / 4000 - expected).max() < 0.002


@pytest.mark.parametrize(("kind", "prior"), PRIORS)
def test_the_ends_of_the_unit_interval_are_in_the_range(kind: Kind, prior: Prior) -> None:
    for u in (0.0, 5e-324, 1e-20, 0.5, 1 - 2**-53):
        value = kind.from_unit(prior.from_unit(kind, u))
        assert kind.contains(kind.nearest(value))
        assert math.isfinite(prior.log_density(kind, kind.nearest(value)))


def test_two_of_three_draws_with_medium_confidence_are_within_a_seventh_of_the_range() -> None:
    kind, prior = LogUniform(1e-4, 1.0), NumberPrior(1e-2, "medium")
    draws = [kind.from_unit(prior.from_unit(kind, (index + 0.5) / 1000)) for index in range(1000)]
    near = sum(1e-2 / 10**0.6 < lr < 1e-2 * 10**0.6 for lr in draws)  # 0.15 of four decades
    assert near == pytest.approx(683, abs=5)


def test_the_prior_of_a_recipe_is_the_product_of_those_of_the_options_that_are_drawn() -> None:
    raw: dict[str, Any] = {
        "optimizer": {"choice": ["adam", "sgd"], "prior": {"weights": [1, 3]}},
        "momentum": {"quniform": [0.8, 0.9, 0.1], "when": {"optimizer": "sgd"}, "prior": {"at": 0.9}},
        "dropout": {"uniform": [0, 0.5]},
    }
    space = read_space(raw, {})
    adam, sgd = {"optimizer": "adam", "dropout": 0.1}, {"optimizer": "sgd", "momentum": 0.9, "dropout": 0.1}
    assert space.has_prior
    assert space.log_prior(adam) == pytest.approx(math.log(0.5))
    momentum = NumberPrior(0.9, "medium").log_density(QUniform(0.8, 0.9, 0.1), 0.9)
    assert space.log_prior(sgd) == pytest.approx(math.log(1.5) + momentum)
    assert momentum > 0
    assert not space.without_priors().has_prior
    assert space.without_priors().log_prior(sgd) == 0


LR: dict[str, Any] = {"loguniform": [1e-5, 1e-2]}
OPTIMIZER: dict[str, Any] = {"choice": ["adam", "sgd"]}
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("lr", LR | {"prior": 0.01}, r"space.lr.prior is 0.01; expected \{at: VALUE, confidence: medium\}"),
    ("lr", LR | {"prior": {"at": 0.1}}, r"space.lr.prior.at is 0.1; expected a value of the range 1e-05 to 0.01: put"),
    ("lr", LR | {"prior": {"at": -1}}, r"space.lr is -1; expected a number > 0"),
    ("lr", LR | {"prior": {"at": True}}, r"space.lr.prior.at is True; expected a number"),
    (
        "lr",
        LR | {"prior": {"at": 1e-3, "confidence": "hihg"}},
        r"confidence is 'hihg' \(did you mean high\?\); expected",
    ),
    ("lr", LR | {"prior": {"at": 1e-3, "confidence": 3}}, r"confidence is 3; expected low, medium or high"),
    ("lr", LR | {"prior": {"at": 1e-3, "sigma": 3}}, r"space.lr.prior.sigma is unknown; expected \{at"),
    ("lr", LR | {"prior": {"weights": [1, 1]}}, r"space.lr.prior is .* expected \{at"),
    ("lr", LR | {"priors": {"at": 1e-3}}, r"space.lr is .* expected one of choice, uniform"),
    ("depth", {"randint": [2, 5], "prior": {"at": 3.5}}, r"space.depth is 3.5; expected a whole number"),
    (
        "optimizer",
        OPTIMIZER | {"prior": {"at": "sgd"}},
        r"space.optimizer.prior is .* expected \{weights: \[\.\.\.\]\}",
    ),
    ("optimizer", OPTIMIZER | {"prior": {"weights": [1]}}, r"weights is \[1\]; expected 2 numbers, one for each value"),
    ("optimizer", OPTIMIZER | {"prior": {"weights": [1, 0]}}, r"expected numbers > 0; leave a value that is never"),
    ("optimizer", OPTIMIZER | {"prior": {"weights": [1, "a"]}}, r"weights is \[1, 'a'\]; expected numbers > 0"),
    ("optimizer", OPTIMIZER | {"prior": {"weights": [1, 1e-12]}}, r"less than a billionth of their sum"),
]


@pytest.mark.parametrize(("name", "entry", "message"), REFUSED)
def test_a_prior_that_cannot_be_is_refused(name: str, entry: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigErrors, match=message):
        read_space({name: entry}, {})


def test_a_prior_reads_back_equal_and_is_shown() -> None:
    raw = {
        "lr": LR | {"prior": {"at": 1e-3, "confidence": "low"}},
        "optimizer": OPTIMIZER | {"prior": {"weights": [1, 3]}},
    }
    space = read_space(raw, {})
    assert read_space(space.to_dict(), {}) == space
    assert [row[-1] for row in space.describe()] == ["about 0.001 (low)", "weights 1, 3"]
