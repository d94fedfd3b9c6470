"""Options that are set and cannot act are said; those that act, or are not set, are not."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from trainable import cli
from trainable.core.config import TrainConfig
from trainable.core.idle_options import idle_options, idle_text
from trainable.core.options import OPTIONS, make_config
from trainable.data.prepare import Data
from tune.cli import app
from tune.spec.idle_parameters import idle_parameters
from tune.spec.sweep_config import make_sweep_config
from tune.spec.sweep_file import load_sweep_config

SHIPPED = sorted(entry.name for entry in resources.files("search_spaces").iterdir() if entry.name.endswith(".yaml"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"momentum": 0.5}, "momentum (optimizer is adam, not sgd)"),
        ({"momentum": 0.5, "optimizer": "sgd"}, ""),
        ({"momentum": 0.9}, ""),  # its default
        ({"nesterov": False, "optimizer": "sgd", "momentum": 0.0}, "nesterov (momentum is 0, not above 0)"),
        ({"warmup_epochs": 5}, "warmup_epochs (scheduler is plateau, not cosine)"),
        ({"warmup_epochs": 5, "scheduler": "cosine"}, ""),
        ({"warmup_epochs": 5, "scheduler": "cosine", "epochs": 5}, ""),  # lr rises, if not to its value
        ({"step_size": 5, "scheduler": "step", "epochs": 5}, "step_size (epochs is 5, not above step_size)"),
        ({"min_lr": 1e-5, "scheduler": "poly"}, "min_lr (scheduler is poly, not cosine or plateau or multistep)"),
        ({"plateau_factor": 0.1, "scheduler": "step"}, "plateau_factor (scheduler is step, not plateau)"),
        ({"focal_gamma": 1.0}, "focal_gamma (base_loss is bce, not focal)"),
        ({"focal_gamma": 1.0, "focal_loss": True}, ""),
        ({"tversky_beta": 0.1}, "tversky_beta (base_loss is bce, not tversky)"),
        ({"flip_prob": 0.1, "augment": False}, "flip_prob (augment is false, not true)"),
        ({"blur_prob": 0.2, "augment_strength": 0}, "blur_prob (augment_strength is 0, not above 0)"),
        ({"fold": 1, "folds": 3}, ""),
        ({"val_fraction": 0.2, "folds": 3}, "val_fraction (folds is 3, not 0)"),
        ({"amp": "bf16", "device": "cpu"}, "amp (device is cpu, not auto or cuda)"),
        ({"lesion_wise": True}, "lesion_wise (test_only is false, not true)"),
        (
            {"momentum": 0.5, "poly_power": 2},
            "momentum (optimizer is adam, not sgd), poly_power (scheduler is plateau, not poly)",
        ),
    ],
)
def test_what_cannot_act_is_said_with_its_reason(options: dict[str, Any], said: str) -> None:
    given = [name for name in options if name in TrainConfig.model_fields]
    text = idle_text(idle_options(make_config(options), given))
    assert text == (said and f"warning: without effect here: {said}")


def test_conditions_are_on_options_that_exist() -> None:
    named = {other for info in OPTIONS.values() for other in info.acts_if}
    assert named <= OPTIONS.keys()


def test_train_says_it_at_its_start(prepared: Data, phantoms: Path, tmp_path: Path, capsys: Any) -> None:
    small = "--depth 2 --base_channels 4 --target_shape 16 16 16 --overlap 0 --num_workers 0 --device cpu --epochs 1"
    data = ["--data_dir", str(phantoms), "--cache_dir", str(prepared.folder)]
    assert cli.main([*data, *small.split(), "--output_dir", str(tmp_path / "a"), "--momentum", "0.5"]) == 0
    output = "".join(capsys.readouterr())
    assert output.count("without effect") == 1
    assert "warning: without effect here: momentum (optimizer is adam, not sgd)\n" in output
    assert cli.main(["--resume", str(tmp_path / "a"), "--epochs", "2"]) == 0  # not given in this call
    assert "without effect" not in "".join(capsys.readouterr())


def parameters_of(space: dict[str, Any], **train: Any) -> dict[str, str]:
    values: dict[str, Any] = {"early_stopping": {"type": "none"}, "train": train, "space": space}
    return idle_parameters(make_sweep_config(values).space)


def test_a_searched_option_without_when_is_said_if_it_may_be_idle() -> None:
    warmup = {"choice": [0, 2]}
    schedules = {"choice": ["cosine", "step"]}
    assert parameters_of({"scheduler": schedules, "warmup_epochs": warmup}) == {
        "warmup_epochs": "in trials where scheduler is step, not cosine: give it a `when`"
    }
    assert not parameters_of({"scheduler": schedules, "warmup_epochs": warmup | {"when": {"scheduler": "cosine"}}})
    assert parameters_of({"warmup_epochs": warmup})
    assert not parameters_of({"warmup_epochs": warmup}, scheduler="cosine")
    assert not parameters_of({"warmup_epochs": {"choice": [0, 9]}}, scheduler="cosine", epochs=9)
    assert parameters_of({"step_size": {"choice": [3, 9]}}, scheduler="step", epochs=9)


def test_a_fixed_option_is_said_if_it_acts_in_no_trial() -> None:
    lr = {"lr": {"loguniform": [1e-5, 1e-2]}}
    assert parameters_of(lr, momentum=0.5) == {"momentum": "optimizer is adam, not sgd"}
    assert not parameters_of({"optimizer": {"choice": ["adam", "sgd"]}}, momentum=0.5)
    assert not parameters_of(lr, momentum=0.5, optimizer="sgd")


@pytest.mark.parametrize("name", SHIPPED)
def test_the_shipped_spaces_have_none(name: str) -> None:
    assert not idle_parameters(load_sweep_config(name).space)


def test_check_says_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "space.yaml"
    file.write_text(
        "early_stopping: {type: none}\ntrain: {epochs: 4, momentum: 0.5}\nresources: {gpu: 0}\n"
        "space: {lr: {loguniform: [1.0e-5, 1.0e-2]}}\n"
    )
    with pytest.raises(SystemExit) as caught:
        app(["check", str(file)])
    assert caught.value.code == 0
    assert "\nwarning: without effect here: momentum (optimizer is adam, not sgd)\n\nok\n" in capsys.readouterr().out
