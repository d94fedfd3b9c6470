"""`voxtune prior`: priors from earlier sweeps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import voxtune_here
from optuna.trial import TrialState
from synthetic_run import make_synthetic_run

from trainable.core.errors import InputError
from tune.analysis.prior_fit import best_trials, fit_number, fit_priors, prior_lines
from tune.run.results import Run, TrialResult
from tune.run.run_dir import RunDir
from tune.spec.kinds import LogUniform, RandInt
from tune.spec.prior import NumberPrior, WeightsPrior
from tune.spec.sweep_config import make_sweep_config
from tune.spec.sweep_file import load_sweep_config

SPACE: dict[str, Any] = {
    "optimizer": {"choice": ["adam", "sgd"]},
    "lr": [
        {"when": {"optimizer": "sgd"}, "loguniform": [1e-4, 1.0]},
        {"when": {"optimizer": "adam"}, "loguniform": [1e-5, 1e-1]},
    ],
    "dropout": {"uniform": [0.0, 0.5]},
}


def run_of(values_and_scores: list[tuple[dict[str, Any], float]], name: str = "run") -> Run:
    trials = [
        TrialResult(n, TrialState.COMPLETE, "epochs", score, 9, 9, {}, values, 1.0, None, "")
        for n, (values, score) in enumerate(values_and_scores)
    ]
    return Run(RunDir(Path(name)), make_sweep_config({"space": SPACE}), trials)


def drawn(trials: int, seed: int, *, effect: float = 1.0) -> list[tuple[dict[str, Any], float]]:
    """Recipes at random; SGD with lr 0.01 is best, dropout has no effect."""
    rng, found = np.random.default_rng(seed), []
    for _ in range(trials):
        optimizer = ["adam", "sgd"][rng.integers(2)]
        lr = 10 ** rng.uniform(*((-4, 0) if optimizer == "sgd" else (-5, -1)))
        values = {"optimizer": optimizer, "lr": float(lr), "dropout": float(rng.uniform(0, 0.5))}
        good = 0.9 - 0.1 * abs(np.log10(lr / 0.01)) - 0.2 * (optimizer == "adam")
        found.append((values, effect * good + 0.001 * rng.normal()))
    return found


def test_priors_are_where_the_best_trials_are() -> None:
    fitted = {parameter.name: branches for parameter, branches in fit_priors([run_of(drawn(80, 0))])}
    weights = fitted["optimizer"][0].prior
    assert isinstance(weights, WeightsPrior)
    assert weights.weights[1] >= 3 * weights.weights[0] == 3
    sgd, adam = fitted["lr"]
    assert isinstance(sgd.prior, NumberPrior)
    assert 0.003 < sgd.prior.at < 0.03
    assert sgd.prior.confidence in ("medium", "high")
    assert sgd.reason.endswith("best trials of run")
    assert adam.prior is None
    assert adam.reason.startswith("says nothing: ")
    assert fitted["dropout"][0].prior is None


def test_trials_at_random_say_nothing_mostly() -> None:
    """Of an option without effect, a prior comes seldom and is never sure."""
    found = []
    for seed in range(40):
        run = run_of([(values, float(score)) for values, score in drawn(40, seed, effect=0.0)])
        found += [branch.prior for _, branches in fit_priors([run]) for branch in branches]
    numbers = [prior for prior in found if isinstance(prior, NumberPrior)]
    assert len(numbers) < 0.35 * 120
    assert all(prior.confidence == "low" for prior in numbers)


def test_with_few_best_trials_the_prior_is_wider() -> None:
    kind = LogUniform(1e-4, 1.0)
    few, many = (fit_number(kind, [0.009, 0.01, 0.011] * times)[0] for times in (1, 8))
    assert few is not None
    assert many is not None
    assert (few.confidence, many.confidence) == ("low", "medium")
    assert fit_number(RandInt(1, 10), [4, 4, 4, 5] * 5)[0] == NumberPrior(4, "medium")


def test_the_lines_are_yaml_that_a_sweep_reads(tmp_path: Path) -> None:
    lines = prior_lines([run_of(drawn(80, 0), "first"), run_of(drawn(60, 1), "second")])
    (tmp_path / "next.yaml").write_text("\n".join(lines))
    space = load_sweep_config(tmp_path / "next.yaml").space
    assert space.has_prior
    assert space.without_priors() == make_sweep_config({"space": SPACE}).space
    assert any("of first, second" in line for line in lines)


def test_a_run_of_few_trials_is_refused() -> None:
    with pytest.raises(InputError, match="3 trials can be compared"):
        best_trials(run_of(drawn(3, 0)))


def test_a_run_whose_best_trials_are_everywhere_is_refused() -> None:
    run = run_of([({"dropout": 0.5 * (n % 4) / 3}, 0.5) for n in range(16)])
    with pytest.raises(InputError, match="they say nothing of any option"):
        prior_lines([run])


def test_the_verb_prints_priors_and_refuses_a_folder_twice(tmp_path: Path) -> None:
    make_synthetic_run(tmp_path / "run", trials=60)
    done = voxtune_here("prior", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    assert "prior: {at:" in done.stdout
    twice = voxtune_here("prior", str(tmp_path / "run"), str(tmp_path / "run"))
    assert twice.returncode == 2
    assert "is given twice" in twice.stderr


def test_draws_of_a_prior_without_effect_are_not_handed_back_as_evidence() -> None:
    """All are near one value, and mostly SGD, as a prior draws them; their scores are noise."""
    found = []
    for seed in range(40):
        rng, trials = np.random.default_rng(seed), list[tuple[dict[str, Any], float]]()
        for _ in range(40):
            values: dict[str, Any] = {"optimizer": "sgd" if rng.random() < 0.75 else "adam"}
            values["dropout"] = float(np.clip(rng.normal(0.25, 0.05), 0, 0.5))
            trials.append((values, float(rng.normal())))
        found += [branch.prior for _, branches in fit_priors([run_of(trials)]) for branch in branches]
    assert sum(prior is not None for prior in found) < 0.25 * 80


def test_a_trial_that_contradicts_a_fixed_option_of_the_last_run_does_not_count() -> None:
    """Adam is fixed in the last run; of SGD's trials, the lr says nothing of Adam's."""
    space = {"lr": {"loguniform": [1e-5, 1.0]}}
    config = make_sweep_config({"space": space, "train": {"optimizer": "adam"}})
    last = [(values, score) for values, score in drawn(80, 2) if values["optimizer"] == "adam"]
    own = replace(run_of([({"lr": values["lr"]}, score) for values, score in last], "last"), config=config)
    [(_, [with_other])] = fit_priors([run_of(drawn(80, 0), "first"), own])
    [(_, [alone])] = fit_priors([own])
    assert with_other.prior == alone.prior
    assert "first" not in with_other.reason


def test_a_run_that_fixes_another_value_than_the_last_does_not_count_and_is_named() -> None:
    """SGD is fixed in the first run, Adam in the last. What cannot act, or follows the epochs, may differ."""
    space = {"lr": {"loguniform": [1e-5, 1.0]}}

    def fixing(name: str, **train: Any) -> Run:
        trials = [({"lr": values["lr"]}, score) for values, score in drawn(80, 2)]
        return replace(run_of(trials, name), config=make_sweep_config({"space": space, "train": train}))

    first, last = fixing("first", optimizer="sgd"), fixing("last", optimizer="adam", momentum=0.9, warmup_epochs=2)
    assert fit_priors([first, last]) == fit_priors([last])
    lines = prior_lines([first, last])
    assert "(last: 20)" in lines[0]
    assert lines[1] == "# Without first, in which optimizer is sgd, not adam"
    alike = fixing("alike", optimizer="adam", momentum=0.8, warmup_epochs=5)
    assert "40 best trials of alike, last" in fit_priors([alike, last])[0][1][0].reason
