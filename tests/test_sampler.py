"""How the first trials are spread, and what the sampler knows of GPU memory before a trial runs."""

import math
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.search_space import IntersectionSearchSpace
from optuna.trial import create_trial

from trainable.core.config import TrainConfig
from trainable.core.options import to_dict
from tune.cli.sweeps import check
from tune.search.enqueue import enqueue_start
from tune.search.journal import Journal
from tune.search.memory_limits import dominates_in_memory, out_of_memory, runs_out
from tune.search.prior_guard import MIN_ENDED, prior_misleads
from tune.search.recipe_sampler import SobolStartupSampler
from tune.search.sampler import first_recipes, make_sampler
from tune.search.tpe import MemoryAwareTPESampler, PriorTPESampler
from tune.spec.kinds import LogUniform, QUniform, RandInt, Uniform
from tune.spec.space import encode_values
from tune.spec.sweep_config import SweepConfig, make_sweep_config
from tune.spec.sweep_file import load_sweep_config

DEFAULT = to_dict(TrainConfig())


@pytest.fixture
def config() -> SweepConfig:
    """Two options that memory grows with and one that it does not depend on."""
    space = {
        "base_channels": {"randint": [8, 64]},
        "batch_size": {"randint": [1, 8]},
        "lr": {"loguniform": [1e-5, 0.1]},
    }
    return make_sweep_config({"space": space, "searcher": {"startup_trials": 4}})


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, True),
        ({"lr": 1.0, "dropout": 0.5}, True),
        ({"batch_size": 3}, True),
        ({"batch_size": 1}, False),
        ({"accumulation_steps": 4}, True),
        ({"batch_size": 1, "base_channels": 64}, False),
        ({"target_shape": [128, 128, 160]}, True),
        ({"target_shape": [160, 128, 96]}, False),
        ({"residual": True, "deep_supervision": True}, True),
        ({"amp": "bf16", "batch_size": 8}, False),
        ({"gradient_checkpointing": True}, False),
    ],
)
def test_needs_at_least_the_memory_of_the_default(change: dict[str, Any], expected: bool) -> None:
    assert dominates_in_memory(DEFAULT | change, DEFAULT) is expected


def test_of_a_recipe_that_lacks_an_option_with_when_the_default_counts() -> None:
    channels = {"choice": [16, 32], "when": {"residual": False}}
    space = {"residual": {"choice": [False, True]}, "batch_size": {"randint": [1, 4]}, "base_channels": channels}
    config, study = make_sweep_config({"space": space}), optuna.create_study()
    values = {"residual": True, "batch_size": 2}
    attrs, distributions = {"constraints": [1.0]}, config.space.distributions(values)
    study.add_trial(create_trial(value=0.0, params=values, distributions=distributions, system_attrs=attrs))
    limits = out_of_memory(config.space, study.trials)
    assert [runs_out(config.space, values | {"batch_size": size}, limits) for size in (1, 2, 3)] == [False, True, True]


def proposals(
    config: SweepConfig, sampler: type[optuna.samplers.TPESampler] | None, trials: int, *, room: int = 100
) -> list[dict[str, Any]]:
    """The params of trials of which those above `room` channels times patches run out of memory; larger is better."""
    study, common = optuna.create_study(direction="maximize"), IntersectionSearchSpace(include_pruned=True)
    for number in range(trials):
        ours = make_sampler(config, number, common, study.trials)
        assert isinstance(ours, MemoryAwareTPESampler if number >= 4 else SobolStartupSampler)
        study.sampler = ours if sampler is None else sampler(seed=number, n_startup_trials=4, multivariate=True)
        trial = study.ask()
        config.space.suggest(trial)
        size = trial.params["base_channels"] * trial.params["batch_size"]
        trial.set_constraint("gpu_memory", float(size > room))
        study.tell(trial, 0.0 if size > room else size / room)
    return [trial.params for trial in study.trials]


def repeated(params: list[dict[str, Any]], *, room: int = 100) -> int:
    """How many, after the start-up, ask for no less than one before that ran out of memory."""
    too_large = [each["base_channels"] * each["batch_size"] > room for each in params]
    return sum(
        any(
            large and dominates_in_memory(DEFAULT | each, DEFAULT | than)
            for large, than in zip(too_large[:number], params[:number], strict=True)
        )
        for number, each in enumerate(params)
        if number >= 4
    )


def test_tpe_proposes_nothing_that_is_known_not_to_fit(config: SweepConfig) -> None:
    ours, plain_tpe = proposals(config, None, 40), proposals(config, optuna.samplers.TPESampler, 40)
    assert repeated(ours) == 0
    assert repeated(plain_tpe) > 0
    assert proposals(config, None, 40) == ours


@pytest.mark.parametrize("seed", range(4))
def test_nor_if_all_that_tpe_draws_is_known_not_to_fit(seed: int) -> None:
    space = {"batch_size": {"choice": [1, 2, 4]}, "base_channels": {"choice": [8, 16, 32]}}
    space["lr"] = {"loguniform": [1e-4, 1e-2]}
    few = make_sweep_config({"space": space, "study": {"seed": seed}, "searcher": {"startup_trials": 4}})
    assert repeated(proposals(few, None, 20, room=16), room=16) == 0


def startup(seed: int, trials: int, kind: str = "tpe") -> list[dict[str, Any]]:
    """The first values of a space with every kind of range and a condition."""
    space = {
        "optimizer": {"choice": ["adam", "adamw", "sgd"]},
        "momentum": {"uniform": [0.8, 0.99], "when": {"optimizer": "sgd"}},
        "lr": {"loguniform": [1e-5, 1e-1]},
        "loss_weights": {"choice": [[1.0, 1.0], [1.0, 2.0], [2.0, 1.0], [1.0, 4.0]]},
        "batch_size": {"randint": [1, 4]},
        "dropout": {"quniform": [0.0, 0.3, 0.1]},
    }
    config = make_sweep_config(
        {"space": space, "study": {"seed": seed}, "searcher": {"type": kind, "startup_trials": trials}}
    )
    study, common = optuna.create_study(direction="maximize"), IntersectionSearchSpace(include_pruned=True)
    found = []
    for number in range(trials):
        study.sampler = make_sampler(config, number, common, study.trials)
        trial = study.ask()
        found.append(config.space.suggest(trial))
        study.tell(trial, 0.0)
    return found


@pytest.mark.parametrize("kind", ["bayes", "tpe", "gp", "cmaes"])
@pytest.mark.parametrize("seed", range(5))
def test_the_first_trials_are_even_in_every_option(seed: int, kind: str) -> None:
    first = startup(seed, 16, kind)
    decades = [int(math.log10(each["lr"]) + 5) for each in first]
    assert [decades.count(decade) for decade in range(4)] == [4, 4, 4, 4]
    for name in ("loss_weights", "batch_size", "dropout"):
        values = [str(each[name]) for each in first]
        assert [values.count(value) for value in set(values)] == [4, 4, 4, 4], name
    optimizers = [each["optimizer"] for each in first]
    assert {optimizers.count(name) for name in set(optimizers)} == {5, 6}
    assert all(("momentum" in each) == (each["optimizer"] == "sgd") for each in first)
    assert startup(seed, 16, kind) == first != startup(seed + 5, 16, kind)


def test_a_random_search_is_random() -> None:
    first = startup(0, 16, "random")
    assert any([each["batch_size"] for each in first].count(size) != 4 for size in range(1, 5))


@pytest.mark.parametrize("kind", ["tpe", "random"])
@pytest.mark.parametrize("trials", [3, 20])
def test_the_first_recipes_are_those_that_the_sweep_proposes(tmp_path: Path, kind: str, trials: int) -> None:
    config = load_sweep_config("brats", [f"searcher.type={kind}", f"study.trials={trials}", "study.seed=3"])
    journal = Journal(tmp_path, config)
    journal.enqueue_first((config.space.default_params(),))
    enqueue_start(journal.study, config)
    assert [journal.ask()[1] for _ in range(min(trials, 5))] == first_recipes(config, 5)


def test_of_a_sampler_that_begins_with_one_trial_one_recipe_is_known() -> None:
    for startup in (0, 1):
        config = load_sweep_config("quick", [f"searcher.startup_trials={startup}", "start=null"])
        assert len(first_recipes(config, 5)) == 1


@pytest.mark.parametrize("u", [0.0, 0.25, 0.5, 1 - 2**-30])
def test_the_inverse_cdf_of_a_range_stays_in_it(u: float) -> None:
    for kind in (LogUniform(1e-5, 0.1), Uniform(0.8, 0.99), RandInt(1, 4)):
        assert kind.contains(kind.from_unit(u)), (kind, kind.from_unit(u))
    assert QUniform(0.0, 0.3, 0.1).from_unit(u) == [0.0, 0.1, 0.2, 0.3][int(4 * u)]


def test_trial_0_is_the_same_in_check_in_launch_and_as_the_base_config(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A default outside the space: in the journal, in what `check` prints, and in what recipes are compared to."""
    overrides = ["space.lr={loguniform: [1e-3, 1e-2]}", "space.scheduler={choice: [cosine, poly]}"]
    config = load_sweep_config("quick", overrides)
    journal = Journal(tmp_path, config)
    journal.enqueue_first((config.space.default_params(),))
    _, values = journal.ask()
    assert (values["lr"], values["scheduler"], values["optimizer"]) == (1e-3, "cosine", "adam")
    assert first_recipes(config, 1) == [values]
    assert config.train_config(values) == config.base_config()
    check("quick", overrides)
    expected = "trial 0: the defaults, except lr=0.001 (default 0.0003), scheduler=cosine (default plateau)\n"
    assert expected in capsys.readouterr().out


def oom_trial(config: SweepConfig, values: dict[str, Any]) -> optuna.trial.FrozenTrial:
    """A trial of these values that ran out of GPU memory."""
    params = config.space.encode_recipe(DEFAULT | values)
    return optuna.trial.create_trial(
        value=0.0, params=params, distributions=config.space.distributions(params), constraints={"gpu_memory": 1.0}
    )


def test_the_start_up_leaves_out_recipes_that_are_known_not_to_fit(config: SweepConfig) -> None:
    small = {"base_channels": 10, "batch_size": 2, "lr": 1e-3}
    for number in range(40):
        sampler = make_sampler(config, number, IntersectionSearchSpace(), [oom_trial(config, small)])
        assert isinstance(sampler, SobolStartupSampler)
        assert sampler.values["base_channels"] < 10 or sampler.values["batch_size"] < 2, number


def test_of_the_start_up_in_a_space_with_priors_as_many_are_known_as_cannot_contradict_them() -> None:
    space = {"lr": {"loguniform": [1e-5, 0.1], "prior": {"at": 1e-3}}}
    raw = {"space": space, "searcher": {"startup_trials": 16}, "study": {"trials": 16}}
    assert len(first_recipes(make_sweep_config(raw), 16)) == MIN_ENDED
    assert len(first_recipes(make_sweep_config(raw | {"start": [{"lr": 1e-4 * n} for n in range(1, 9)]}), 16)) >= 8


def test_trials_out_of_memory_say_nothing_of_the_priors() -> None:
    raw = {"space": {"lr": {"loguniform": [1e-5, 0.1], "prior": {"at": 1e-4, "confidence": "high"}}}}
    config = make_sweep_config(raw)
    out = [oom_trial(config, {"lr": 0.05}) for _ in range(MIN_ENDED)]
    for number, trial in enumerate(out):
        trial.number = number
    assert not prior_misleads(config.space, out)


def test_tpe_weighs_an_option_with_when_by_its_prior_too() -> None:
    """It is drawn alone, after the option that it depends on."""
    space = {
        "optimizer": {"choice": ["adam", "sgd"]},
        "momentum": {"uniform": [0.8, 0.99], "when": {"optimizer": "sgd"}, "prior": {"at": 0.95, "confidence": "high"}},
    }
    config = make_sweep_config({"space": space})
    near = []
    for power in (0.0, 5.0):
        drawn = []
        for seed in range(15):
            study = optuna.create_study(direction="maximize")
            for index in range(16):
                values = {"optimizer": "sgd", "momentum": 0.8 + 0.19 * index / 15} if index else {"optimizer": "adam"}
                params = encode_values(values)
                study.add_trial(
                    optuna.trial.create_trial(
                        value=0.5, params=params, distributions=config.space.distributions(params)
                    )
                )
            study.sampler = PriorTPESampler(config, IntersectionSearchSpace(), power, seed=seed, n_startup_trials=4)
            study.enqueue_trial(encode_values({"optimizer": "sgd"}))
            drawn.append(config.space.suggest(study.ask())["momentum"])
        near.append(sum(abs(value - 0.95) < 0.02 for value in drawn))
    assert near[1] > near[0] + 4, near
