"""The search space: what is read, what is refused, what Optuna draws."""

import itertools
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.samplers import RandomSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from trainable.core.config import TrainConfig
from trainable.core.options import make_config
from tune.spec.kinds import KINDS, Choice, Kind, LogUniform, QUniform, RandInt, Uniform, encode
from tune.spec.space import DEFAULTS, ConfigErrors, Space
from tune.spec.space_reader import read_space

SPACE: dict[str, Any] = {
    "momentum": {"uniform": [0.8, 0.99], "when": {"optimizer": "sgd"}},
    "optimizer": {"choice": ["adam", "adamw", "sgd"]},
    "lr": {"loguniform": [1e-5, 1e-2]},
    "depth": {"randint": [4, 6]},
    "dropout": {"quniform": [0.0, 0.5, 0.1]},
    "loss_weights": {"choice": [[1.0, 1.0], [1.0, 2.0]]},
    "weight_decay": {"loguniform": [1e-6, 1e-3], "when": {"optimizer": ["adamw", "sgd"], "loss_weights": [[1.0, 2.0]]}},
}


@pytest.fixture(autouse=True)
def _quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def sample(space: Space, sampler: Any, count: int) -> list[dict[str, Any]]:
    """The values of some trials; the score prefers a high lr."""
    study, found = optuna.create_study(sampler=sampler, direction="maximize"), []
    for _ in range(count):
        trial = study.ask()
        found.append(space.suggest(trial))
        study.tell(trial, found[-1].get("lr", 0.0))
    return found


def test_order_puts_conditions_after_what_they_name() -> None:
    names = [parameter.name for parameter in read_space(SPACE, {}).parameters]
    assert names.index("optimizer") < names.index("momentum")
    assert names.index("loss_weights") < names.index("weight_decay")
    assert sorted(names) == sorted(SPACE)


def test_values_are_in_their_ranges_and_reach_both_ends() -> None:
    trials = sample(read_space(SPACE, {}), RandomSampler(0), 200)
    assert {v["depth"] for v in trials} == {4, 5, 6}
    assert {v["dropout"] for v in trials} == {0.0, 0.1, 0.2, 0.3, 0.4, 0.5}
    assert all(1e-5 <= v["lr"] <= 1e-2 for v in trials)
    assert {str(v["loss_weights"]) for v in trials} == {"[1.0, 1.0]", "[1.0, 2.0]"}


def test_conditions_decide_what_is_drawn(tmp_path: Path) -> None:
    """Also what the journal holds, read back from its file."""
    space, file = read_space(SPACE, {}), tmp_path / "journal.log"
    study = optuna.create_study(
        study_name="s", storage=JournalStorage(JournalFileBackend(str(file))), sampler=TPESampler(seed=1)
    )
    given = []
    for _ in range(40):
        trial = study.ask()
        given.append(space.suggest(trial))
        study.tell(trial, 0.5)
    for values in given:
        assert ("momentum" in values) == (values["optimizer"] == "sgd")
        wanted = values["optimizer"] in ("adamw", "sgd") and values["loss_weights"] == [1.0, 2.0]
        assert ("weight_decay" in values) == wanted
        make_config(values)
    read = optuna.load_study(study_name="s", storage=JournalStorage(JournalFileBackend(str(file))))
    assert [space.decode_params(trial.params) for trial in read.trials] == given


def test_condition_on_a_fixed_option() -> None:
    raw = {"momentum": {"uniform": [0.8, 0.9], "when": {"optimizer": "sgd"}}, "lr": {"loguniform": [1e-4, 1e-2]}}
    assert all("momentum" in values for values in sample(read_space(raw, {"optimizer": "sgd"}), RandomSampler(0), 5))


def test_condition_on_an_inactive_parameter_does_not_hold() -> None:
    raw = {
        "optimizer": {"choice": ["adam", "sgd"]},
        "residual": {"choice": [False, True], "when": {"optimizer": "sgd"}},
        "dropout": {"uniform": [0.0, 0.5], "when": {"residual": False}},
    }
    for values in sample(read_space(raw, {}), RandomSampler(0), 40):
        assert ("dropout" in values) == (values.get("residual") is False)


def test_default_recipe_is_trial_0() -> None:
    space = read_space(SPACE, {})
    study = optuna.create_study()
    study.enqueue_trial(space.default_params())
    assert make_config(space.suggest(study.ask())) == TrainConfig()
    assert "momentum" not in space.default_params()


OUTSIDE: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"lr": {"loguniform": [1e-3, 1e-2]}, "base_loss": {"choice": ["bce", "focal"]}}, {"lr": 1e-3, "base_loss": "bce"}),
    ({"lr": {"loguniform": [1e-6, 1e-5]}}, {"lr": 1e-5}),
    ({"momentum": {"uniform": [0.95, 0.99]}}, {"momentum": 0.95}),
    ({"lr": {"choice": [1e-2, 2e-4]}}, {"lr": 1e-2}),  # the first one: choices have no order
    ({"depth": {"randint": [2, 3]}}, {"depth": 3}),
    ({"momentum": {"quniform": [0.0, 0.96, 0.32]}}, {"momentum": 0.96}),
    ({"augment_strength": {"quniform": [0.3, 2.1, 0.6]}}, {"augment_strength": 0.9}),
    ({"loss_weights": {"choice": [[1.0, 2.0], [2.0, 1.0]]}}, {"loss_weights": [1.0, 2.0]}),
    (
        {
            "poly_power": {"uniform": [0.5, 2.0], "when": {"scheduler": "poly"}},
            "warmup_epochs": {"choice": [2, 5], "when": {"scheduler": "cosine"}},
            "scheduler": {"choice": ["cosine", "poly"]},  # the documented default is plateau
        },
        {"scheduler": "cosine", "warmup_epochs": 2},
    ),
]


@pytest.mark.parametrize(("raw", "expected"), OUTSIDE)
def test_trial_0_has_the_nearest_value_to_a_default_outside_the_space(
    raw: dict[str, Any], expected: dict[str, Any]
) -> None:
    space, study = read_space(raw, {}), optuna.create_study(sampler=RandomSampler(0))
    assert space.default_values() == expected
    study.enqueue_trial(space.default_params())
    trial = study.ask()
    assert space.suggest(trial) == expected
    assert trial.params == {name: encode(value) for name, value in expected.items()}


def test_what_is_not_at_its_default_in_trial_0_is_listed() -> None:
    assert read_space(SPACE, {}).describe_defaults() == "the defaults"
    raw = {"lr": {"loguniform": [1e-3, 1e-2]}, "scheduler": {"choice": ["cosine", "poly"]}}
    expected = "the defaults, except lr=0.001 (default 0.0003), scheduler=cosine (default plateau)"
    assert read_space(raw, {}).describe_defaults() == expected


KIND_EXAMPLES: list[tuple[Kind, Any, Any, Any]] = [
    (Choice(("a", "b")), "b", "c", "a"),
    (Choice(([1.0, 2.0], [2.0, 1.0])), [2.0, 1.0], [3.0, 3.0], [1.0, 2.0]),
    (Uniform(0.8, 0.99), 0.9, 0.5, 0.8),
    (LogUniform(1e-5, 1e-2), 1e-3, 0.1, 1e-2),
    (RandInt(2, 5), 3, 9, 5),
    (QUniform(0.0, 0.3, 0.1), 0.2, 0.24, 0.2),
]


@pytest.mark.parametrize(("kind", "inside", "outside", "nearest"), KIND_EXAMPLES)
def test_each_kind_contains_its_grid_and_finds_the_nearest_value(
    kind: Kind, inside: Any, outside: Any, nearest: Any
) -> None:
    assert kind.contains(inside)
    assert not kind.contains(outside)
    assert (kind.nearest(inside), kind.nearest(outside)) == (inside, nearest)
    assert all(kind.contains(value) for value in kind.grid())
    assert kind.grid()[0] == kind.from_unit(0.0)
    assert KINDS[kind.key].read("x", kind.to_list(), lambda value: value) == kind


WIDE: list[tuple[Kind, Any, Any, Any]] = [
    (RandInt(1, 2**53), 300_000_000, 0, 1),
    (QUniform(0.0, 1e8, 1.0), 123_456.0, 0.5, 0.0),
    (QUniform(0.0, 1.0, 1e-9), 0.25, 2.0, 1.0),
]


@pytest.mark.parametrize(("kind", "inside", "outside", "nearest"), WIDE)
def test_a_range_of_any_width_takes_no_time_and_no_memory(kind: Kind, inside: Any, outside: Any, nearest: Any) -> None:
    """A list of the values of the first would take 72 PB."""
    started = time.perf_counter()
    for _ in range(100):
        assert kind.contains(inside)
        assert not kind.contains(outside)
        assert (kind.nearest(inside), kind.nearest(outside)) == (inside, nearest)
        assert kind.grid() == [kind.low, kind.high]  # type: ignore[union-attr]
        assert all(kind.contains(kind.from_unit(u)) for u in (0.0, 0.3, 1 - 2**-53))
    assert time.perf_counter() - started < 1


def test_a_unit_number_maps_to_each_value_of_a_range_as_to_a_list_of_them() -> None:
    for kind in (RandInt(-3, 900), QUniform(0.3, 2.1, 0.6), QUniform(0.0, 0.96, 0.32)):
        grid = kind.grid()
        assert [kind.from_unit(u / 1000) for u in range(1000)] == [grid[int(u / 1000 * len(grid))] for u in range(1000)]
        between: list[Any] = [low + (high - low) / 3 for low, high in itertools.pairwise(grid)]
        assert not any(map(kind.contains, between))
        if isinstance(kind, QUniform):
            assert [kind.nearest(value) for value in between] == grid[:-1]


def test_the_recipes_of_a_finite_space_respect_conditions() -> None:
    raw: dict[str, Any] = {
        "optimizer": {"choice": ["adam", "sgd"]},
        "momentum": {"quniform": [0.8, 0.9, 0.1], "when": {"optimizer": "sgd"}},
        "loss_weights": {"choice": [[1.0, 1.0], [1.0, 2.0]]},
    }
    space = read_space(raw, {})
    recipes = space.recipes
    assert recipes is not None
    assert len(recipes) == 6
    assert {"optimizer": "sgd", "momentum": 0.9, "loss_weights": [1.0, 2.0]} in recipes
    assert {"optimizer": "adam", "loss_weights": [1.0, 1.0]} in recipes
    assert space.untried(6, [recipes[0], recipes[0], recipes[3]]) == [*recipes[1:3], *recipes[4:]]
    assert space.untried(5, recipes) is None  # five trials do not exhaust it
    assert read_space(raw | {"lr": LR}, {}).recipes is None
    assert read_space({"step_size": {"randint": [1, 10**9]}}, {"scheduler": "step"}).recipes is None


@pytest.mark.parametrize("more", [{}, {"multivariate": True, "group": True}])
def test_same_seed_gives_same_proposals(more: dict[str, bool]) -> None:
    space = read_space(SPACE, {})
    first, again, other = (sample(space, TPESampler(seed=seed, **more), 25) for seed in (3, 3, 4))
    assert first == again != other


def test_importances_take_lists_as_choices() -> None:
    space, study = read_space(SPACE, {}), optuna.create_study(sampler=RandomSampler(0), direction="maximize")
    for _ in range(30):
        trial = study.ask()
        study.tell(trial, space.suggest(trial)["loss_weights"][1])
    assert optuna.importance.get_param_importances(study)["loss_weights"] > 0


def test_choices_and_conditions_are_read_as_the_trainer_reads_them() -> None:
    raw: dict[str, Any] = {"amp": {"choice": [False, True]}, "lr": {"choice": [1, 2]}}
    raw["dropout"] = {"uniform": [0, 0.5], "when": {"amp": True}}
    amp, lr, dropout = read_space(raw, {}).parameters
    assert (amp.kind, lr.kind, dropout.when) == (Choice(("off", "fp16")), Choice((1.0, 2.0)), {"amp": ("fp16",)})


def test_to_dict_reads_back_equal() -> None:
    space = read_space(SPACE, {"epochs": 9})
    assert read_space(space.to_dict(), {"epochs": 9}) == space


def test_describe() -> None:
    rows = {row[0]: row[1:] for row in read_space(SPACE, {}).describe()}
    assert rows["lr"] == ("loguniform", "1e-05 to 0.01", "", "")
    assert rows["dropout"] == ("quniform", "0 to 0.5, step 0.1", "", "")
    assert rows["loss_weights"] == ("choice", "[1.0, 1.0], [1.0, 2.0]", "", "")
    assert rows["weight_decay"][2] == "optimizer = adamw or sgd and loss_weights = [1.0, 2.0]"


LR: dict[str, Any] = {"loguniform": [1e-5, 1e-2]}
REFUSED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"lrr": LR}, {}, r"space.lrr: unknown option 'lrr' \(did you mean lr\?\)"),
    ({"seed": {"choice": [1]}}, {}, r"space.seed is part of the protocol .* fixed under train:, never searched"),
    ({"device": {"choice": ["cpu"]}}, {}, r"space.device .* how a training runs"),
    ({"lr": LR}, {"lr": 0.1}, r"train.lr is 0.1, but space.lr searches it; drop one .* space.lr=null"),
    ({"lr": None}, {}, r"space.lr is None; expected one of choice, uniform"),
    ({"lr": {"when": {"optimizer": "sgd"}}}, {}, r"space.lr is .* expected one of choice"),
    ({"lr": {"uniform": [0.1, 1], "choice": [1]}}, {}, r"space.lr is .* expected one of choice"),
    ({"lr": {"log_uniform": [0.1, 1]}}, {}, r"unknown kind 'log_uniform' \(did you mean loguniform\?\)"),
    ({"lr": {"loguniform": [1e-5]}}, {}, r"space.lr.loguniform is \[1e-05\]; expected \[low, high\]"),
    ({"lr": {"loguniform": 3}}, {}, r"space.lr.loguniform is 3; expected \[low, high\]"),
    ({"lr": {"loguniform": [1e-2, 1e-5]}}, {}, r"expected low < high"),
    ({"lr": {"uniform": [0.1, 0.1]}}, {}, r"expected low < high"),
    ({"lr": {"loguniform": ["a", 1]}}, {}, r"expected numbers"),
    ({"lr": {"loguniform": [False, True]}}, {}, r"expected numbers"),
    ({"lr": {"uniform": [0.1, float("inf")]}}, {}, r"space.lr is inf; expected a number > 0"),
    ({"lr": {"uniform": [float("nan"), 1.0]}}, {}, r"space.lr is nan; expected a number > 0"),
    ({"weight_decay": {"loguniform": [0.0, 1e-2]}}, {}, r"space.weight_decay.loguniform .* expected low > 0"),
    ({"depth": {"randint": [4.5, 6]}}, {}, r"space.depth is 4.5; expected a whole number"),
    ({"depth": {"randint": [1, 6]}}, {}, r"space.depth is 1; expected a whole number >= 2 and <= 8"),
    ({"depth": {"uniform": [4, 6]}}, {}, r"space.depth.uniform does not suit this option; expected randint or choice"),
    ({"optimizer": {"uniform": [0, 1]}}, {}, r"space.optimizer.uniform does not suit this option; expected choice"),
    ({"lr": {"randint": [1, 3]}}, {}, r"space.lr.randint does not suit"),
    ({"dropout": {"quniform": [0.0, 0.5, 0.2]}}, {}, r"expected a step > 0 that divides high - low"),
    ({"dropout": {"quniform": [0.0, 0.5, 0]}}, {}, r"expected a step > 0"),
    ({"dropout": {"quniform": [0.0, 0.5, float("nan")]}}, {}, r"expected a step > 0"),
    ({"lr": {"loguniform": [1e-320, 1e-2]}}, {}, r"space.lr.loguniform .* expected ends whose ratio is a number"),
    ({"step_size": {"randint": [1, 10**20]}}, {}, r"space.step_size.randint .* at most 9007199254740992 \(2\^53\)"),
    ({"dropout": {"quniform": [0.0, 0.5, 10**400]}}, {}, r"expected a step > 0"),
    ({"dropout": {"quniform": [0.0, 0.5, 1e-30]}}, {}, r"expected at most 1000000000 steps; uniform has no steps"),
    ({"dropout": {"quniform": [0.0, 0.5]}}, {}, r"expected \[low, high, step\]"),
    ({"dropout": {"uniform": [0.0, 1.0]}}, {}, r"space.dropout is 1.0; expected a number >= 0 and < 1"),
    ({"optimizer": {"choice": ["adam", "adamx"]}}, {}, r"space.optimizer is 'adamx'; expected one of adam, adamw, sgd"),
    ({"loss_weights": {"choice": [[0.0, 0.0]]}}, {}, r"space.loss_weights are \[0.0, 0.0\]; expected two of 0 or more"),
    ({"loss_weights": {"choice": [1.0, 2.0]}}, {}, r"space.loss_weights is 1.0; expected 2 numbers"),
    ({"optimizer": {"choice": []}}, {}, r"space.optimizer.choice is \[\]; expected a list of one value or more"),
    ({"lr": {"choice": [0.1, 1e-1]}}, {}, r"expected each value once"),
    ({"loss_weights": {"choice": [[1, 1], [1.0, 1.0]]}}, {}, r"expected each value once"),
    ({"lr": LR | {"when": 3}}, {}, r"space.lr.when is 3; expected option: value"),
    ({"lr": LR | {"when": {"optimiser": "sgd"}}}, {}, r"space.lr.when.optimiser .* \(did you mean optimizer\?\)"),
    ({"lr": LR | {"when": {"lr": 0.1}}}, {}, r"space.lr.when.lr is 0.1; expected another option, not lr itself"),
    ({"lr": LR | {"when": {"optimizer": []}}}, {}, r"expected a value or a list of values"),
    ({"lr": LR | {"when": {"loss_weights": [1.0, 1.0]}}}, {}, r"expected a list of lists"),
    ({"lr": LR | {"when": {"optimizer": "sdg"}}}, {}, r"space.lr.when.optimizer is 'sdg'; expected one of adam"),
    ({"lr": LR | {"when": {"optimizer": "sgd"}}}, {}, r"optimizer is always 'adam'; drop lr with space.lr=null"),
    (
        {"optimizer": {"choice": ["adam", "adamw"]}, "lr": LR | {"when": {"optimizer": "sgd"}}},
        {},
        r"space.lr.when.optimizer is 'sgd'; optimizer is never 'sgd'; expected one of adam, adamw",
    ),
    (
        {"lr": LR, "dropout": {"uniform": [0.0, 0.5], "when": {"lr": 1e-3}}},
        {},
        r"expected an option of countable values, lr is loguniform",
    ),
    (
        {
            "optimizer": {"choice": ["adam"], "when": {"residual": True}},
            "residual": {"choice": [True], "when": {"optimizer": "adam"}},
        },
        {},
        r"space.optimizer.when is in a cycle; .* optimizer, residual",
    ),
    ({"target_shape": {"choice": [[96, 96, 96], [80, 96, 96]]}}, {}, r"target_shape \[80, 96, 96\] can be drawn"),
    (
        {"target_shape": {"choice": [[96, 96, 96], [64, 64, 64]]}, "depth": {"randint": [5, 7]}},
        {},
        r"target_shape \[96, 96, 96\] with depth 7 can be drawn.*\[64, 64, 64\] with depth 7",
    ),
    ({"depth": {"choice": [3, 6]}}, {"target_shape": [32, 32, 32]}, r"\[32, 32, 32\] with depth 6 can be drawn"),
    (
        {"tversky_alpha": {"uniform": [0.0, 0.5]}, "tversky_beta": {"choice": [0.0, 1.0]}},
        {"base_loss": "tversky"},
        r"tversky_alpha and tversky_beta are both 0",
    ),
]


@pytest.mark.parametrize(("raw", "fixed", "message"), REFUSED)
def test_refused(raw: dict[str, Any], fixed: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigErrors, match=message):
        read_space(raw, fixed)


def test_combinations_respect_conditions() -> None:
    """Depth 7 is only drawn if it fits the patch."""
    raw = {
        "target_shape": {"choice": [[96, 96, 96], [128, 128, 128]]},
        "depth": {"choice": [6, 7], "when": {"target_shape": [[128, 128, 128]]}},
    }
    assert len(read_space(raw, {}).combinations(["depth"])) == 3


def test_all_problems_are_reported() -> None:
    with pytest.raises(ConfigErrors) as caught:
        read_space({"lrr": LR, "lr": {"uniform": [1, 0.1]}, "depth": {"randint": [1, 2]}}, {})
    assert [path[1] for path, _ in caught.value.problems] == ["lrr", "lr", "depth"]


def test_defaults_are_the_trainers() -> None:
    assert make_config(DEFAULTS) == TrainConfig()
