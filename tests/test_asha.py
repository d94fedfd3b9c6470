"""Early stopping as pure functions: rungs, cutoffs and decisions."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import SWEEP

from tune.search.asha import CONTINUE, STOP, RungDecision, Rungs, audited, cutoff, rung_epochs, rung_value
from tune.search.score_noise import score_noise
from tune.spec.sections import EarlyStopping
from tune.spec.sweep_config import SweepConfig, make_sweep_config


@pytest.fixture
def config() -> SweepConfig:
    return make_sweep_config(SWEEP)


def with_stopping(**stopping: object) -> SweepConfig:
    return make_sweep_config({**SWEEP, "early_stopping": {"min_trials": 1, "margin": 0.0, **stopping}})


def test_the_cutoff_is_the_score_that_the_best_third_reaches():
    third, half = (EarlyStopping(reduction_factor=factor, min_trials=1) for factor in (3, 2))
    assert cutoff([], third) == -np.inf
    assert cutoff([0.5], third) == 0.5
    assert cutoff([0.0, 0.3], third) == pytest.approx(0.2)
    assert cutoff([0.1, 0.2, 0.3, 0.4], half) == pytest.approx(0.25)


def test_the_median_rule_compares_at_each_validated_epoch_once_three_were_there():
    values = {
        **SWEEP,
        "early_stopping": {"type": "median", "grace_period": 4, "min_trials": 1},
        "train": {"epochs": 9, "val_freq": 2},
    }
    config = make_sweep_config(values)
    assert rung_epochs(config) == (4, 6, 8)
    assert cutoff([0.1, 0.9], config.early_stopping) == -np.inf
    assert cutoff([0.1, 0.9, 0.3], config.early_stopping) == pytest.approx(0.3)


def test_nobody_is_stopped_before_min_trials_stood_at_the_rung():
    config = with_stopping(min_trials=3, margin=0.0)
    assert cutoff([0.5, 0.6], config.early_stopping) == -np.inf
    rungs = Rungs(config)
    for number, value in enumerate((0.9, 0.1, 0.2)):  # the first one, as the default recipe is, sets no bar alone
        decided = rungs.decide(number, 1, value)
        assert (decided.decision, decided.needed) == (CONTINUE, None)
        rungs.add(number, 1, decided)
    assert rungs.decide(3, 1, 0.3).decision == STOP
    assert rungs.decide(3, 1, 0.3).among == 3
    median = with_stopping(type="median", min_trials=5).early_stopping
    assert cutoff([0.5] * 4, median) == -np.inf
    assert cutoff([0.5] * 5, median) == 0.5


def test_a_trial_below_the_cutoff_by_less_than_the_margin_goes_on():
    rungs = Rungs(with_stopping(margin=0.05))
    rungs.add(0, 1, RungDecision(0.5, CONTINUE))
    assert rungs.decide(1, 1, 0.46).decision == CONTINUE
    decided = rungs.decide(1, 1, 0.44)
    assert (decided.decision, decided.needed, decided.margin) == (STOP, pytest.approx(0.45), 0.05)


def test_the_noise_of_scores_is_found_under_a_rising_curve():
    rng, epochs = np.random.default_rng(0), np.arange(12)
    noises = []
    for _ in range(200):
        rise = rng.uniform(0.5, 0.9) * (1 - np.exp(-epochs / rng.uniform(2, 8)))
        noises.append(score_noise(list(rise + rng.normal(0, 0.01, 12))))
    assert np.median(noises) == pytest.approx(0.01, rel=0.15)
    steady = [0.5, 0.6, 0.65, 0.67, 0.2, 0.68, 0.69, 0.7, 0.71, 0.7, 0.71, 0.7]  # one bad validation
    assert score_noise(steady) < 0.02
    assert score_noise([0.1, 0.2, 0.3]) is None


def test_the_estimated_margin_is_the_median_noise_of_the_trials_with_enough_scores():
    rungs = Rungs(with_stopping(margin="auto"))
    assert rungs.margin == 0.0
    curves = {0: [0.1, 0.3, 0.2, 0.4, 0.3], 1: [0.1, 0.2, 0.3, 0.4, 0.5], 2: [0.1, 0.9, 0.1, 0.9, 0.1], 3: [0.0, 0.9]}
    for number, scores in curves.items():
        for epoch, score in enumerate(scores, 1):
            rungs.observe(number, epoch, score)
            rungs.observe(number, epoch, 0.0)  # a restored trial repeats its report
    assert rungs.margin == 0.5 * (score_noise(curves[0]) or 0.0)
    unused = Rungs(with_stopping(margin=0.1))
    unused.observe(0, 1, 0.5)
    assert (unused.margin, unused.scores) == (0.1, {})


def test_the_value_of_a_rung_is_the_best_score_or_the_mean_of_the_last_three():
    scores = {1: 0.2, 2: 0.9, 3: 0.3, 4: 0.4, 5: 0.5, 6: 0.1}
    assert [rung_value(scores, epoch, "best") for epoch in (1, 3, 6)] == [0.2, 0.9, 0.9]
    means = [rung_value(scores, epoch, "recent") for epoch in (1, 2, 3, 5)]
    assert means == pytest.approx([0.2, 0.55, 1.4 / 3, 0.4])
    rungs = Rungs(with_stopping(value="recent"))
    for epoch, score in scores.items():
        rungs.observe(0, epoch, score)
    assert rungs.value(0, 5, 0.9) == pytest.approx(0.4)
    assert rungs.value(1, 5, 0.9) == 0.9  # of an older version, which did not note the scores
    assert Rungs(with_stopping()).value(0, 5, 0.9) == 0.9


def test_rungs_are_below_the_last_epoch(config: SweepConfig):
    assert rung_epochs(config) == (1, 3)


def test_only_what_is_below_the_cutoff_is_stopped():
    third = Rungs(with_stopping(reduction_factor=3))
    assert third.decide(9, 1, 0.1, earlier=[]).decision == CONTINUE
    assert third.decide(9, 1, 0.5, earlier=[0.5]).decision == CONTINUE
    assert third.decide(9, 1, 0.49, earlier=[0.5]).decision == STOP
    median = Rungs(with_stopping(type="median"))
    assert median.decide(9, 1, 0.0, earlier=[0.5, 0.6]).decision == CONTINUE
    assert median.decide(9, 1, 0.5, earlier=[0.4, 0.6, 0.7]).decision == STOP


def with_audit(share: float, seed: int = 3, **study: object) -> SweepConfig:
    stopping = {**SWEEP["early_stopping"], "audit": share}
    return make_sweep_config({**SWEEP, "study": {**SWEEP["study"], "seed": seed, **study}, "early_stopping": stopping})


def test_the_audit_draws_its_share_by_seed_and_number_and_a_larger_share_draws_the_same_and_more():
    configs = [with_audit(share) for share in (0.0, 0.1, 0.3, 1.0)]
    drawn = [[audited(config, number) for number in range(2000)] for config in configs]
    shares = [np.mean(draws) for draws in drawn]
    assert shares == pytest.approx([0.0, 0.1, 0.3, 1.0], abs=0.03)
    assert all(more or not less for less, more in zip(drawn[1], drawn[2], strict=True))
    other = with_audit(0.1, seed=4)
    assert [audited(other, number) for number in range(2000)] != drawn[1]


def test_a_stop_that_is_not_carried_out_is_recorded_with_its_reason():
    rungs = Rungs(with_audit(1.0))
    rungs.add(0, 1, RungDecision(0.5, CONTINUE))
    assert rungs.decide(1, 1, 0.4) == RungDecision(0.4, CONTINUE, "audit")
    assert rungs.decide(1, 1, 0.4, default=True) == RungDecision(0.4, CONTINUE, "default")
    assert rungs.decide(1, 1, 0.6, default=True) == RungDecision(0.6, CONTINUE)
    unprotected = Rungs(with_audit(0.0, protect_default=False))
    unprotected.add(0, 1, RungDecision(0.5, CONTINUE))
    assert unprotected.decide(1, 1, 0.4, default=True) == RungDecision(0.4, STOP)


def test_a_trial_that_would_have_been_stopped_sets_no_bar_later_and_is_not_stopped_later():
    rungs = Rungs(with_audit(1.0))
    for number, value in enumerate((0.5, 0.4)):
        rungs.add(number, 1, rungs.decide(number, 1, value))
    assert rungs.values[1] == {0: 0.5, 1: 0.4}  # as of a trial that is stopped here
    rungs.add(0, 3, rungs.decide(0, 3, 0.6))
    decided = rungs.decide(1, 3, 0.9)
    rungs.add(1, 3, decided)
    assert decided == RungDecision(0.9, CONTINUE, "audit")
    assert rungs.values[3] == {0: 0.6}


@pytest.mark.parametrize("kind", ["asha", "median"])
@pytest.mark.parametrize("share", [0.2, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_all_others_are_decided_as_without_protection_and_audit(kind: str, share: float, seed: int):
    """Reports of all trials mixed at random, with resumes: who goes on and where each stop would be stays the same."""
    rng = np.random.default_rng(seed)
    curves = np.sort(rng.random((60, 9)), 1)
    arrivals = rng.permutation(np.repeat(np.arange(60), 9))
    resumes = set(rng.choice(len(arrivals), 20).tolist())

    def replay(audit: float, *, protect: bool) -> dict[int, dict[int, RungDecision]]:
        config = with_audit(audit, protect_default=protect)
        config = config.model_copy(update={"early_stopping": config.early_stopping.model_copy(update={"type": kind})})
        rungs, epochs = Rungs(config), dict.fromkeys(range(60), 0)
        decisions: dict[int, dict[int, RungDecision]] = {number: {} for number in range(60)}
        for place, number in enumerate(map(int, arrivals)):
            if place in resumes:
                rungs = Rungs(config)
                for known, of_trial in decisions.items():
                    for epoch in sorted(of_trial):
                        rungs.add(known, epoch, of_trial[epoch])
            epochs[number] = epoch = epochs[number] + 1
            stopped = any(decided.decision == STOP for decided in decisions[number].values())
            if epoch in rung_epochs(config) and not stopped:
                decided = rungs.decide(number, epoch, curves[number, epoch - 1], default=number == 0)
                rungs.add(number, epoch, decided)
                decisions[number][epoch] = decided
        return decisions

    def stops(decisions: dict[int, dict[int, RungDecision]]) -> dict[int, int]:
        """The epoch at which each trial is or would be stopped."""
        return {
            number: next(epoch for epoch, decided in of_trial.items() if decided.decision == STOP or decided.kept)
            for number, of_trial in decisions.items()
            if any(decided.decision == STOP or decided.kept for decided in of_trial.values())
        }

    plain, other = replay(0.0, protect=False), replay(share, protect=True)
    assert stops(plain) == stops(other)
    assert len(stops(plain)) > 20
    assert any(decided.kept == "audit" for of_trial in other.values() for decided in of_trial.values())
