"""`start:` of a YAML: recipes that are tried after the default one, before any is drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from trainable.core.errors import InputError
from tune.cli.command import app
from tune.search.enqueue import enqueue_start
from tune.search.journal import Journal
from tune.search.sampler import first_recipes
from tune.spec.sweep_config import SweepConfig
from tune.spec.sweep_file import dump, load_sweep_config

SPACE: dict[str, Any] = {
    "optimizer": {"choice": ["adam", "sgd"]},
    "lr": [
        {"when": {"optimizer": "sgd"}, "loguniform": [1e-3, 1e-1]},
        {"when": {"optimizer": "adam"}, "loguniform": [1e-5, 1e-2]},
    ],
    "momentum": {"uniform": [0.8, 0.99], "when": {"optimizer": "sgd"}},
    "gradient_clipping": {"choice": [0.0, 12.0]},
}
DEFAULT = {"optimizer": "adam", "lr": 3e-4, "gradient_clipping": 0.0}
SGD = {"optimizer": "sgd", "lr": 0.01, "momentum": 0.9, "gradient_clipping": 0.0}


def config_of(folder: Path, start: Any, *overrides: str, **sections: Any) -> SweepConfig:
    path = folder / "my.yaml"
    path.write_text(yaml.safe_dump({"space": SPACE, "start": start, **sections}))
    return load_sweep_config(path, overrides)


def test_a_recipe_is_completed_by_defaults_and_kept_by_the_file(tmp_path: Path) -> None:
    config = config_of(tmp_path, [{"optimizer": "sgd", "lr": 0.01}, {"name": "clipped", "gradient_clipping": 12}])
    assert config.start == (SGD, {**DEFAULT, "gradient_clipping": 12.0})
    assert [name for name, _ in config.given_recipes] == [
        "the default recipe",
        "start recipe 1",
        "start recipe clipped",
    ]
    again = tmp_path / "again.yaml"
    again.write_text(dump(config))
    assert load_sweep_config(again) == config


def test_a_recipe_of_a_file_is_kept_as_plain_values(tmp_path: Path) -> None:
    """The shipped nnunet by its name; a file next to the YAML, of which the protocol's options are left out."""
    (tmp_path / "mine.yaml").write_text("optimizer: sgd\nlr: 0.05\nepochs: 1000\n")
    train = {"nesterov": True, "weight_decay": 3e-5, "scheduler": "poly", "deep_supervision": True}
    config = config_of(tmp_path, ["nnunet", "mine.yaml"], train=train)
    nnunet = {"optimizer": "sgd", "lr": 0.01, "momentum": 0.99, "gradient_clipping": 12.0}
    assert config.start == (nnunet, {**SGD, "lr": 0.05})
    assert config.start_names == ("nnunet", "mine")
    (tmp_path / "mine.yaml").unlink()
    again = tmp_path / "again.yaml"
    again.write_text(dump(config))
    assert load_sweep_config(again) == config
    assert config.train_config(dict(config.start[0])).epochs == config.fixed("epochs")


def test_a_sweep_tries_the_default_then_each_other_recipe_once(tmp_path: Path) -> None:
    again = {"optimizer": "sgd", "lr": 0.01, "momentum": 0.9}
    config = config_of(tmp_path, [{"optimizer": "adam"}, {"optimizer": "sgd", "lr": 0.01}, again, {"lr": 1e-3}])
    expected = [DEFAULT, SGD, {**DEFAULT, "lr": 1e-3}]
    assert [values for _, values in config.given_recipes] == expected
    journal = Journal(tmp_path, config)
    journal.enqueue_first([config.space.default_params()])
    for _ in range(2):
        enqueue_start(journal.study, config)
    asked = [journal.ask()[1] for _ in range(5)]
    assert asked[:3] == expected
    assert asked[3] not in expected
    assert first_recipes(config, 5) == asked


def test_recipes_of_a_space_that_trials_exhaust_are_tried_first_and_once(tmp_path: Path) -> None:
    space = {"optimizer": {"choice": ["adam", "sgd"]}, "gradient_clipping": {"choice": [0.0, 1.0, 12.0]}}
    config = config_of(tmp_path, [{"optimizer": "sgd", "gradient_clipping": 12}], space=space)
    recipes = first_recipes(config, 10)
    assert recipes[1] == {"optimizer": "sgd", "gradient_clipping": 12.0}
    assert len({str(recipe) for recipe in recipes}) == len(recipes) == 6


def test_more_recipes_than_trials_are_no_mistake(tmp_path: Path) -> None:
    config = config_of(tmp_path, [{"lr": 1e-3}, {"lr": 1e-4}], "study.trials=2")
    assert first_recipes(config, 5) == [DEFAULT, {**DEFAULT, "lr": 1e-3}]
    assert len(first_recipes(config_of(tmp_path, [{"lr": 1e-3}], "searcher.startup_trials=0"), 5)) == 2


REFUSED: list[tuple[Any, str]] = [
    ({"lr": 0.01}, r"start is \{'lr': 0.01\}; expected a list, each item options"),
    ("nnunet", r"start is 'nnunet'; expected a list"),
    ([3], r"start\[0\]: 3 is no recipe; expected options, such as"),
    ([{}], r"start\[0\]: \{\} is no recipe"),
    ([{"name": "x"}], r"start\[0\]: .* is no recipe"),
    ([{"name": 3, "lr": 0.01}], r"start\[0\]: name is 3; expected a text"),
    (["nnunett"], r"start\[0\]: nnunett: no such file \(did you mean nnunet\?\); shipped are nnunet"),
    ([{"learning_rate": 0.1}], r"start\[0\]: unknown option 'learning_rate'"),
    ([{"lr": "fast"}], r"start\[0\]: lr is 'fast'; expected a number > 0"),
    ([{"epochs": 9}], r"start\[0\]: epochs is part of the protocol .* fix it under train:"),
    ([{"lr": 0.05}], r"lr is 0.05, outside its range 1e-05 to 0.01 if optimizer = adam; widen the range, or leave lr"),
    (
        [{"momentum": 0.95}],
        r"momentum is 0.95, but it is not searched in this recipe \(it is if optimizer = sgd\); leave",
    ),
    ([{"dropout": 0.2}], r"dropout is 0.2, but each trial has the default 0; search dropout, fix it so under train:"),
    ([{"amp": "bf16"}], r"start\[0\]: amp is bf16, but train: fixes fp16; search amp"),
    (["nnunet"], r"start\[0\] \(nnunet\): scheduler is poly, but each trial has the default plateau; search scheduler"),
]


@pytest.mark.parametrize(("start", "message"), REFUSED)
def test_a_recipe_outside_the_space_is_refused(tmp_path: Path, start: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        config_of(tmp_path, start, train={"amp": "fp16"})


def test_each_mistake_is_told_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_text(
        "space:\n  lr:\n    loguniform: [1e-5, 1e-2]\nstart:\n  - lr: 1e-3\n  - nnunett\n  - lr: 7\n    dropout: 0.1\n"
    )
    with pytest.raises(InputError) as caught:
        load_sweep_config(path)
    lines = [line.split(": ")[0].removeprefix(f"{path}:") for line in str(caught.value).splitlines()]
    assert lines == ["6", "7", "8"]


def test_the_list_can_be_set_as_a_whole_and_dropped(tmp_path: Path) -> None:
    assert config_of(tmp_path, [{"lr": 1e-3}], "start=null").start == ()
    assert config_of(tmp_path, [], "start=[{lr: 1e-3}]").start == ({**DEFAULT, "lr": 1e-3},)
    for wrong in ("start.lr=1e-3", "start[0].lr=3", "start="):
        with pytest.raises(InputError, match="start"):
            config_of(tmp_path, [], wrong)
    with pytest.raises(
        InputError, match=r"^--set start\[0\].lr: start\[0\]: lr is 7, outside|^--set start: start\[0\]: lr is 7"
    ):
        config_of(tmp_path, [], "start=[{lr: 7}]")


def test_check_shows_the_recipes_by_name(tmp_path: Path) -> None:
    config_of(tmp_path, [{"name": "mine", "lr": 1e-3}])
    result = CliRunner().invoke(app, ["check", str(tmp_path / "my.yaml")])
    assert result.exit_code == 0
    assert "1: start recipe mine: gradient_clipping=0 optimizer=adam lr=0.001" in result.output
    assert "prior" not in result.output
    shown = CliRunner().invoke(app, ["check", str(tmp_path / "my.yaml"), "--json"])
    assert '"start recipe mine"' in shown.output
