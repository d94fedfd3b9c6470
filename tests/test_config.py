"""The options of a training: what is accepted, what is refused, and with which message."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from trainable.core.config import TrainConfig
from trainable.core.errors import InputError
from trainable.core.option_files import load_options, save_options
from trainable.core.options import (
    allowed,
    checked_together,
    make_config,
    option_names,
    path_options,
    permissive_values,
    to_dict,
)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lr": -1}, "lr is -1; expected a number > 0"),
        ({"lr": "fast"}, "lr is 'fast'; expected a number > 0"),
        ({"lr": float("nan")}, "lr is nan; expected a number > 0"),
        ({"epochs": 2.5}, "epochs is 2.5; expected a whole number >= 1"),
        ({"epochs": True}, "epochs is True; expected a whole number >= 1"),
        ({"lr": True}, "lr is True; expected a number > 0"),
        ({"dropout": 1}, "dropout is 1; expected a number >= 0 and < 1"),
        ({"depth": 9}, "depth is 9; expected a whole number >= 2 and <= 8"),
        ({"optimizer": "rmsprop"}, "optimizer is 'rmsprop'; expected one of adam, adamw, sgd"),
        ({"optimizer": "admw"}, "optimizer is 'admw'; expected one of adam, adamw, sgd (did you mean adamw?)"),
        ({"residual": "maybe"}, "residual is 'maybe'; expected true or false"),
        ({"focal_loss": "yes"}, "focal_loss is 'yes'; expected true or false"),
        ({"data_dir": 5}, "data_dir is 5; expected a URI or a path"),
        ({"target_shape": [64, 64, 64, 64]}, "target_shape is [64, 64, 64, 64]; expected 3 whole numbers"),
        ({"target_shape": [64, 64, "x"]}, "target_shape is 'x' (item 2); expected 3 whole numbers"),
        ({"loss_weights": [1, None]}, "loss_weights is None (item 1); expected 2 numbers"),
        ({"loss_weights": [0, 0]}, "loss_weights are [0.0, 0.0]; expected two of 0 or more, not both 0"),
        ({"loss_weights": [-1, 2]}, "loss_weights are [-1.0, 2.0]; expected two of 0 or more, not both 0"),
        ({"optimiser": "adam"}, "unknown option 'optimiser' (did you mean optimizer?)"),
        ({"lerning_rate": 1}, "unknown option 'lerning_rate'"),
        ({"val_fraction": 0.5, "test_fraction": 0.5}, "val_fraction + test_fraction leave no case to train on"),
        ({"folds": 1}, "fold is 0 of 1 folds; expected 2 folds or more and a fold below that"),
        ({"folds": 3, "fold": 3}, "fold is 3 of 3 folds; expected 2 folds or more and a fold below that"),
        (
            {"base_loss": "tversky", "tversky_alpha": 0, "tversky_beta": 0},
            "tversky_alpha and tversky_beta are both 0; expected one above 0",
        ),
    ],
)
def test_refusal_names_source_option_value_and_what_is_allowed(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(f"recipe.yaml: {message}")):
        make_config(values, "recipe.yaml")


@pytest.mark.parametrize("values", [{"loss_weights": [True, 1]}, {"target_shape": [True, 2, 2], "depth": 2}])
def test_true_is_no_number_inside_a_list_either(values: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"is \[True, .*\]; expected . .*numbers"):
        make_config(values)


def test_every_problem_is_named_on_its_line() -> None:
    with pytest.raises(InputError) as caught:
        make_config({"lr": -1, "epochs": 0, "sheduler": "cosine"})
    assert sorted(str(caught.value).splitlines()) == [
        "options: epochs is 0; expected a whole number >= 1",
        "options: lr is -1; expected a number > 0",
        "options: unknown option 'sheduler' (did you mean scheduler?)",
    ]


def test_patch_must_be_a_multiple_of_the_network_s_stride() -> None:
    message = "target_shape [128, 100, 128] and depth 6 do not fit: each size must be a multiple of 32 (2^(depth-1)); "
    with pytest.raises(InputError, match=re.escape(message + "the nearest to 100 is 96")):
        make_config({"target_shape": [128, 100, 128]})
    assert make_config({"target_shape": [128, 100, 128], "depth": 3}).target_shape == (128, 100, 128)


def test_patch_of_no_or_negative_size_is_refused() -> None:
    for size in (0, -32):
        with pytest.raises(InputError, match=f"the nearest to {size} is 32"):
            make_config({"target_shape": [size, 64, 64]})


def test_one_or_two_voxels_at_the_bottom_of_the_network_are_refused() -> None:
    """Instance norm makes -1 and 1 of any two: the lowest resolution would tell nothing of the patch."""
    for shape, voxels in [([32, 32, 32], "one voxel"), ([32, 64, 32], "two voxels")]:
        with pytest.raises(InputError, match=f"leave {voxels} at the lowest resolution"):
            make_config({"target_shape": shape, "depth": 6})
    assert make_config({"target_shape": [32, 64, 64], "depth": 6}).depth == 6  # four
    assert make_config({"target_shape": [32, 32, 32], "depth": 5}).depth == 5  # eight


@pytest.mark.parametrize(("given", "meant"), [(True, "fp16"), (False, "off"), ("bf16", "bf16")])
def test_amp_without_a_value_is_fp16(given: Any, meant: str) -> None:
    assert make_config({"amp": given}).amp == meant


def test_focal_loss_is_short_for_the_base_loss() -> None:
    assert make_config({"focal_loss": True}).base_loss == "focal"
    assert make_config({"focal_loss": False}).base_loss == "bce"
    assert make_config({"focal_loss": False, "base_loss": "tversky"}).base_loss == "tversky"


def test_reading_options_does_not_change_the_given_dict() -> None:
    values = {"amp": True, "focal_loss": True}
    make_config(values)
    assert values == {"amp": True, "focal_loss": True}


def test_config_is_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        TrainConfig().lr = 1.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("data_dir", "a URI or a path"),
        ("cache_dir", "a path"),
        ("output_dir", "a path"),
        ("mirror", "true or false"),
        ("scheduler", "one of plateau, cosine, step, multistep, exponential, poly"),
        ("batch_size", "a whole number >= 1"),
        ("lr", "a number > 0"),
        ("focal_alpha", "a number > 0 and < 1"),
        ("step_gamma", "a number > 0 and <= 1"),
        ("augment_strength", "a number >= 0 and <= 3"),
        ("target_shape", "3 whole numbers"),
        ("loss_weights", "2 numbers"),
    ],
)
def test_what_an_option_may_be_in_words(name: str, words: str) -> None:
    assert allowed(name) == words


def test_every_option_says_what_it_may_be() -> None:
    numbers = r"a (whole )?number( [<>]=? -?[\d.]+( and [<>]=? -?[\d.]+)*)?( or auto)?|\d .*numbers"
    shapes = rf"{numbers}|true or false|(a URI or )?a path|one of .*|a list, each a (whole number >= 1|path)"
    assert [name for name in TrainConfig.model_fields if not re.fullmatch(shapes, allowed(name))] == []


def test_each_fact_lists_the_options_that_have_it() -> None:
    assert option_names(one_call=True) == ["resume", "test_only", "members", "save_predictions", "lesion_wise"]
    assert option_names(role="protocol", compared="value", fixed=True) == ["val_cases", "metric"]
    assert option_names(over_epochs="count") == [
        "epochs",
        "warmup_epochs",
        "plateau_patience",
        "step_size",
        "milestones",
    ]
    assert option_names(over_epochs="rate") == ["exponential_gamma"]
    assert option_names(set_by="study") == ["seed", "metric"]
    with pytest.raises(AttributeError, match="fixd"):
        option_names(fixd=True)


def test_options_that_are_paths() -> None:
    expected = ["data_dir", "output_dir", "cache_dir", "resume", "pretrained", "labels", "split_file", "patients"]
    assert path_options() == expected
    assert [name for name in TrainConfig.model_fields if re.search(r"^(?!a list).*a path$", allowed(name))] == expected


def test_each_protocol_option_is_compared_by_value_or_hash() -> None:
    """Else a sweep could take over trials whose scores mean something else."""
    compared = option_names(role="protocol", compared="value") + option_names(role="protocol", compared="hash")
    assert sorted(compared) == sorted(option_names(role="protocol"))


def test_permissive_values_suit_every_value_of_the_options_that_they_are_checked_with() -> None:
    values = permissive_values()
    assert sorted(values) == ["depth", "target_shape"]
    assert checked_together()[0] == ["depth", "target_shape"]
    for depth in range(2, 9):
        make_config({**values, "depth": depth})
    for size in (4, 6, 8, 10, 32, 126):
        make_config({**values, "target_shape": (size, size, size)})


def test_what_defines_scores_is_no_part_of_the_recipe() -> None:
    recipe, protocol, run = (option_names(role=role) for role in ("recipe", "protocol", "run"))
    assert {"lr", "target_shape", "depth", "augment"} <= set(recipe)
    assert {"seed", "epochs", "val_freq", "split_file", "fold", "overlap", "metric"} <= set(protocol)
    assert sorted(recipe + protocol + run) == sorted(TrainConfig.model_fields)


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "+1e-4", "1.0e-4", "10e-5", "0.0001", "1_0e-5", "1.e-4"])
def test_yaml_reads_a_number_however_it_is_written(tmp_path: Path, text: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(f"lr: {text}\n")
    value = load_options(path)["lr"]
    assert isinstance(value, float)
    assert value == pytest.approx(1e-4)


def test_yaml_words_that_only_look_like_numbers_stay_words(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("a: e5\nb: '1e5'\nc: 1e\nd: 1e5x\ne: 12\nf: 1e5\n")
    assert load_options(path) == {"a": "e5", "b": "1e5", "c": "1e", "d": "1e5x", "e": 12, "f": 1e5}


def test_yaml_off_and_on_mean_amp(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    for text, meant in [("off", "off"), ("on", "fp16"), ("true", "fp16"), ("bf16", "bf16")]:
        path.write_text(f"amp: {text}\n")
        assert make_config(load_options(path)).amp == meant


def test_options_come_back_from_their_file(tmp_path: Path) -> None:
    config = make_config({"lr": 1e-5, "target_shape": [64, 96, 64], "data_dir": "/data/brats", "loss_weights": [1, 2]})
    save_options(config, tmp_path / "training_config.json")
    assert make_config(load_options(tmp_path / "training_config.json")) == config


def test_plain_options_are_only_those_that_differ_if_requested() -> None:
    config = make_config({"lr": 1e-5, "target_shape": [64, 64, 64], "cache_dir": "cache"})
    changed = {"lr": 1e-5, "target_shape": [64, 64, 64], "cache_dir": "cache"}
    assert to_dict(config, changed_only=True) == changed
    assert to_dict(config).items() >= changed.items()
    assert set(to_dict(config)) == set(TrainConfig.model_fields)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"lr: [1, 2\n", "cannot be read as YAML or JSON"),
        (b"\xff\xfe\x00", "cannot be read as YAML or JSON"),
        (b"- lr\n- epochs\n", "expected options as `name: value` lines"),
        (b"", "expected options as `name: value` lines"),
        (b"lr: !!python/object/apply:os.getcwd []\n", "cannot be read as YAML or JSON"),
    ],
)
def test_file_without_options_is_refused_by_its_path(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"{re.escape(str(path))}: {message}"):
        load_options(path)


def test_missing_file_is_refused_by_its_path(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.yaml: cannot be read"):
        load_options(tmp_path / "none.yaml")


def test_options_need_no_locks_no_yaml_and_no_torch() -> None:
    code = "import sys, trainable.core.options; print({'fcntl', 'yaml', 'torch', 'rich'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
