"""Options whose range depends on others: one name, several ranges."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.samplers import RandomSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from trainable.core.config import TrainConfig
from trainable.core.errors import InputError
from trainable.core.options import to_dict
from tune.spec.kinds import LogUniform, QUniform, RandInt
from tune.spec.parameter import covering_range
from tune.spec.space import ConfigErrors
from tune.spec.space_reader import read_space
from tune.spec.sweep_file import dump, load_sweep_config

OPTIMIZER = {"choice": ["adam", "adamw", "sgd"]}
SGD: dict[str, Any] = {"loguniform": [1e-3, 1e-1], "when": {"optimizer": "sgd"}, "prior": {"at": 0.01}}
ADAM: dict[str, Any] = {"loguniform": [1e-5, 5e-3], "when": {"optimizer": ["adam", "adamw"]}}
BRANCHED: dict[str, Any] = {"lr": [SGD, ADAM], "optimizer": OPTIMIZER}


def in_range(values: dict[str, Any]) -> bool:
    """Whether a recipe's lr is in the range of its optimizer."""
    low, high = (1e-3, 1e-1) if values["optimizer"] == "sgd" else (1e-5, 5e-3)
    return low <= values["lr"] <= high


@pytest.mark.parametrize("sampler", [RandomSampler(0), TPESampler(seed=0, multivariate=True, n_startup_trials=8)])
def test_each_trial_draws_from_the_range_of_its_optimizer(tmp_path: Path, sampler: Any) -> None:
    """By TPE too, which learns from lr of all optimizers; the journal takes it under one name."""
    space, storage = read_space(BRANCHED, {}), JournalStorage(JournalFileBackend(str(tmp_path / "journal.log")))
    study = optuna.create_study(study_name="s", storage=storage, sampler=sampler, direction="maximize")
    given = []
    for _ in range(40):
        trial = study.ask()
        given.append(space.suggest(trial))
        study.tell(trial, -abs(given[-1]["lr"] - 0.01))
    assert all(map(in_range, given))
    assert {values["optimizer"] for values in given} == {"adam", "adamw", "sgd"}
    read = optuna.load_study(study_name="s", storage=JournalStorage(JournalFileBackend(str(tmp_path / "journal.log"))))
    assert [space.decode_params(trial.params) for trial in read.trials] == given
    assert set(read.trials[-1].params) == {"lr", "optimizer"}


def test_the_default_recipe_has_the_nearest_value_in_the_range_of_its_optimizer() -> None:
    assert read_space(BRANCHED, {}).default_values() == {"optimizer": "adam", "lr": TrainConfig().lr}
    fixed = read_space({"lr": [SGD, ADAM], "optimizer": {"choice": ["sgd", "adamw"]}}, {})
    assert fixed.default_values() == {"optimizer": "sgd", "lr": 1e-3}


def test_an_option_whose_ranges_cover_all_cases_has_no_condition_and_one_that_lacks_a_case_has() -> None:
    parameters = {p.name: p for p in read_space(BRANCHED, {}).parameters}
    assert (parameters["lr"].when, parameters["lr"].kind) == ({}, LogUniform(1e-5, 1e-1))
    assert parameters["lr"].varies
    partly = read_space({"lr": [SGD, ADAM | {"when": {"optimizer": "adamw"}}], "optimizer": OPTIMIZER}, {})
    lr = next(p for p in partly.parameters if p.name == "lr")
    assert lr.when == {"optimizer": ("sgd", "adamw")}
    assert partly.default_values() == {"optimizer": "adam"}
    chosen = {frozenset(values) for values in partly.combinations(["lr"])}
    assert chosen == {frozenset({"optimizer", "lr"}), frozenset({"optimizer"})}


def test_recipes_and_combinations_take_each_range_with_its_condition() -> None:
    entries = [
        {"quniform": [0.8, 0.9, 0.1], "when": {"optimizer": "sgd"}},
        {"quniform": [0.0, 0.2, 0.2], "when": {"optimizer": "adamw"}},
    ]
    space = read_space({"dropout": entries, "optimizer": OPTIMIZER}, {})
    expected = [("adam", None), ("adamw", 0.0), ("adamw", 0.2), ("sgd", 0.8), ("sgd", 0.9)]
    for found in (space.recipes, space.combinations(["dropout"])):
        assert found is not None
        assert [(values["optimizer"], values.get("dropout")) for values in found] == expected


def test_a_recipe_of_another_run_counts_if_its_value_is_in_the_range_of_its_optimizer() -> None:
    space = read_space(BRANCHED, {})
    assert space.encode_recipe(to_dict(TrainConfig(optimizer="sgd", lr=0.05))) == {"optimizer": "sgd", "lr": 0.05}
    with pytest.raises(ValueError, match="lr is 0.05, not of 1e-05 to 0.005 if optimizer = adam or adamw"):
        space.encode_recipe(to_dict(TrainConfig(optimizer="adam", lr=0.05)))


def test_the_covering_range_contains_all_values() -> None:
    assert covering_range([RandInt(2, 5), RandInt(4, 9)]) == RandInt(2, 9)
    kinds = [QUniform(0.0, 0.3, 0.1), QUniform(0.05, 0.45, 0.2)]
    covering = covering_range(kinds)
    assert covering == QUniform(0.0, 0.45, 0.05)
    assert all(covering.contains(value) for kind in kinds for value in kind.grid())
    assert covering_range([QUniform(0.1, 0.9, 0.1), QUniform(0.15, 0.45, 0.15)]) == QUniform(0.1, 0.9, 0.05)
    assert covering_range([QUniform(0.0, 100.0, 50.0), QUniform(20.0, 50.0, 10.0)]) == QUniform(0.0, 100.0, 10.0)


LR: dict[str, Any] = {"loguniform": [1e-5, 1e-2]}
REFUSED: list[tuple[list[Any], str]] = [
    ([SGD, LR], r"space.lr\[1\] has no condition; expected `when`, since each of several ranges needs a condition"),
    (
        [SGD, LR | {"when": {"optimizer": ["adam", "sgd"]}}],
        r"space.lr\[1\] and space.lr\[0\] both apply if optimizer = sgd; expected conditions of which only one can",
    ),
    (
        [SGD, LR | {"when": {"dropout": 0.1}}],
        r"space.lr\[1\] and space.lr\[0\] both apply if optimizer = sgd and dropout = 0.1",
    ),
    (
        [SGD, {"uniform": [0.1, 1], "when": {"optimizer": "adam"}}],
        r"space.lr\[1\] is uniform and .* ranges of one kind",
    ),
    (
        [{"choice": [0.1], "when": {"optimizer": "sgd"}}, {"choice": [1], "when": {"optimizer": "adam"}}],
        r"space.lr\[1\].choice is \[1.0\] and .* expected the same values in the same order",
    ),
    ([SGD, {"when": {"optimizer": "adam"}}], r"space.lr\[1\] is .* expected one of choice, uniform"),
    ([SGD, LR | {"when": {"optimizer": "adamx"}}], r"space.lr\[1\].when.optimizer is 'adamx'; expected one of adam"),
    ([SGD, LR | {"when": {"optimizer": "lion"}}], r"space.lr\[1\].when.optimizer is 'lion'; expected one of adam"),
    ([SGD, LR | {"when": {"lr": 0.1}}], r"space.lr\[1\].when.lr is 0.1; expected another option"),
    ([SGD, {"log_uniform": [1, 2]}], r"space.lr\[1\]: unknown kind 'log_uniform'"),
    ([SGD, LR | {"prior": {"at": 1}}], r"space.lr\[1\].prior.at is 1.0; expected a value of the range"),
    ([SGD, {"loguniform": [1]}], r"space.lr\[1\].loguniform is \[1\]; expected \[low, high\]"),
    ([], r"space.lr is \[\]; expected one of choice"),
]


@pytest.mark.parametrize(("entries", "message"), REFUSED)
def test_ranges_that_do_not_go_together_are_refused(entries: list[Any], message: str) -> None:
    with pytest.raises(ConfigErrors, match=message):
        read_space({"optimizer": OPTIMIZER, "lr": entries}, {})


def test_a_range_that_never_applies_is_refused_unless_the_others_cover_every_recipe() -> None:
    """Ranges for all optimizers serve a sweep of one or two of them; a range for the wrong one is a mistake."""
    with pytest.raises(
        ConfigErrors, match=r"space.lr\[0\].when.optimizer is 'sgd'; optimizer is never 'sgd'; expected"
    ):
        read_space(
            {"lr": [SGD, ADAM | {"when": {"optimizer": "adam"}}], "optimizer": {"choice": ["adam", "adamw"]}}, {}
        )
    with pytest.raises(
        ConfigErrors, match=r"space.lr\[0\].when.optimizer is 'sgd'; optimizer is always 'adam'; drop thi"
    ):
        read_space({"lr": [SGD, ADAM | {"when": {"optimizer": "adamw"}}]}, {})
    assert read_space({"lr": [SGD, ADAM]}, {"optimizer": "sgd"}).default_values() == {"lr": 1e-3}
    assert in_range(read_space(BRANCHED | {"optimizer": {"choice": ["sgd", "adamw"]}}, {}).default_values())


TEXT = """\
space:
  optimizer:
    choice: [adam, sgd]
  lr:
    - when: {optimizer: sgd}
      loguniform: [1e-3, 1e-1]
      prior: {at: 0.01, confidence: medium}
    - when: {optimizer: adam}
      loguniform: [1e-5, 1e-2]
"""


def test_a_mistake_is_told_with_the_line_of_its_range(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    for wrong, line in (("at: 0.01", 7), ("[1e-5, 1e-2]", 9), ("optimizer: adam}", 8)):
        changed = {"at: 0.01": "at: 7", "[1e-5, 1e-2]": "[1e-5]", "optimizer: adam}": "optimizer: adamw}"}[wrong]
        path.write_text(TEXT.replace(wrong, changed))
        with pytest.raises(InputError, match=rf"^{re.escape(str(path))}:{line}: space.lr\[[01]\]"):
            load_sweep_config(path)


def test_a_key_that_is_written_twice_in_a_list_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_text(TEXT + "      loguniform: [1e-5, 1e-1]\n")
    with pytest.raises(InputError, match=r"my.yaml:10: space.lr\[1\].loguniform is written twice, first in line 9"):
        load_sweep_config(path)


def test_ranges_and_priors_are_kept_by_the_file_and_can_be_set(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_text(TEXT)
    config = load_sweep_config(path)
    again = tmp_path / "again.yaml"
    again.write_text(dump(config))
    assert load_sweep_config(again) == config
    entries = "[{when: {optimizer: sgd}, uniform: [0.01, 0.1]}, {when: {optimizer: adam}, uniform: [0.001, 0.01]}]"
    changed = load_sweep_config(path, [f"space.lr={entries}"])
    assert [row[1:4] for row in changed.space.describe()][1:] == [
        ("uniform", "0.01 to 0.1", "optimizer = sgd"),
        ("uniform", "0.001 to 0.01", "optimizer = adam"),
    ]


def test_an_option_whose_range_varies_is_not_modelled_by_gp_and_cmaes(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_text(TEXT)
    assert load_sweep_config(path, ["searcher.type=gp"]).unmodelled_options == ["lr"]
