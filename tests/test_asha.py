"""Early stopping as pure functions: rungs, cutoffs and decisions."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import SWEEP

from tune.search.asha import CONTINUE, STOP, cutoff, decide, rung_epochs
from tune.spec.sections import EarlyStopping
from tune.spec.sweep_config import SweepConfig, make_sweep_config


@pytest.fixture
def config() -> SweepConfig:
    return make_sweep_config(SWEEP)


def test_the_cutoff_is_the_score_that_the_best_third_reaches():
    third, half = EarlyStopping(reduction_factor=3), EarlyStopping(reduction_factor=2)
    assert cutoff([], third) == -np.inf
    assert cutoff([0.5], third) == 0.5
    assert cutoff([0.0, 0.3], third) == pytest.approx(0.2)
    assert cutoff([0.1, 0.2, 0.3, 0.4], half) == pytest.approx(0.25)


def test_the_median_rule_compares_at_each_validated_epoch_once_three_were_there():
    values = {**SWEEP, "early_stopping": {"type": "median", "grace_period": 4}, "train": {"epochs": 9, "val_freq": 2}}
    config = make_sweep_config(values)
    assert rung_epochs(config) == (4, 6, 8)
    assert cutoff([0.1, 0.9], config.early_stopping) == -np.inf
    assert cutoff([0.1, 0.9, 0.3], config.early_stopping) == pytest.approx(0.3)


def test_rungs_are_below_the_last_epoch(config: SweepConfig):
    assert rung_epochs(config) == (1, 3)


def test_only_what_is_below_the_cutoff_is_stopped():
    third = EarlyStopping(reduction_factor=3)
    assert decide(0.1, [], third) == CONTINUE
    assert decide(0.5, [0.5], third) == CONTINUE
    assert decide(0.49, [0.5], third) == STOP
    median = EarlyStopping(type="median")
    assert decide(0.0, [0.5, 0.6], median) == CONTINUE
    assert decide(0.5, [0.4, 0.6, 0.7], median) == STOP
