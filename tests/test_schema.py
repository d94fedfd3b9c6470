"""The JSON schema of a sweep's YAML against `voxtune check`, on generated files."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import yaml

from trainable.core.errors import InputError
from trainable.core.option_files import NumberLoader
from tune.spec.schema import sweep_schema
from tune.spec.sweep_file import load_sweep_config

Values = dict[str, Any]
VALIDATOR = jsonschema.Draft202012Validator(sweep_schema())
SPACES = sorted(entry.name for entry in resources.files("search_spaces").iterdir() if entry.name.endswith(".yaml"))

# What each key may have; "space" has ranges of each kind, of options that no other option is checked against.
ALLOWED: dict[str, Values] = {
    "study": {
        "metric": ["val_dice_mean", "val_dice_ET", ["val_dice_WT"], ["val_dice_TC", "seconds"]],
        "trials": [1, 64],
        "seed": [0, 7],
        "time_budget": [600, 0.5, "48h", "1h 30m", "2d", None],
        "target": [0.9, 1, None],
        "protect_default": [True, False],
        "confirm": [{}, {"top": 2}, {"seeds": 1, "folds": 5}, {"epochs": None}, None],
        "mode": ["max"],
    },
    "early_stopping": {
        "type": ["asha", "median", "promote", "none"],
        "reduction_factor": [2, 4],
        "value": ["best", "recent"],
        "min_trials": [1, 6],
        "margin": [0, 0.02, "auto"],
        "audit": [0, 0.25, 1],
    },
    "searcher": {
        "type": ["tpe", "random", "gp"],
        "startup_trials": [0, 12],
        "wait_for_startup": [True],
        "prior_min_steps": [0, 5000],
    },
    "resources": {
        "gpu": [0.5, 1, 2, "auto", None],
        "cpu": [1, 8],
        "max_failures": [0],
        "report_timeout": ["10m", 60, None],
        "keep_top": [0, 3],
        "reuse_processes": [False],
    },
    "train": {
        "amp": ["bf16", True, False],
        "batch_size": [2, 4],  # which two GPUs can share, as no schema can ask
        "epochs": [50],
        "labels": [2021, "2023", "mine.yaml", None],
        "loss_weights": [[1, 2.5]],
        "milestones": [[], [10, 20]],
        "background": ["auto", 0, -1.5],
        "pretrained": ["best_model.pth", None],
        "dropout": [0, 0.3],
        "augment": [False],
        "val_cases": [0],
    },
    "space": {
        "lr": [
            {"loguniform": [1e-5, 0.1]},
            {"uniform": [0.001, 1], "prior": {"at": 1, "confidence": "low"}},
            {"choice": [0.1, 1]},
            [
                {"loguniform": [1e-3, 0.1], "when": {"base_loss": "bce"}, "prior": {"at": 1e-2}},
                {"loguniform": [1e-5, 1e-2], "when": {"base_loss": ["focal", "tversky"]}},
            ],
            [{"uniform": [0.001, 1]}],
        ],
        "optimizer": [{"choice": ["adam", "sgd"]}, {"choice": ["adam", "sgd"], "prior": {"weights": [1, 0.5]}}],
        "residual": [{"choice": [True, False]}],
        "weight_decay": [{"quniform": [0, 0.1, 0.05]}],
        "accumulation_steps": [{"randint": [1, 4]}, {"choice": [1, 2]}],
        "focal_gamma": [{"uniform": [0, 5], "when": {"base_loss": "bce"}}],
        "exponential_gamma": [{"uniform": [0.5, 1], "when": {"scheduler": ["plateau", "cosine"]}}],
        "gradient_clipping": [{"choice": [0, 1.0], "when": {"loss_weights": [[1, 1], [1, 2.5]], "ema_decay": 0}}],
    },
}  # fmt: skip

# One thing that is wrong, by itself: a change of the values, each of a kind of its own.
FAULTS: dict[str, Callable[[Values], object]] = {
    "an unknown section": lambda v: v.update(spaces={}),
    "a record": lambda v: v.update(record={"study": "mine"}),
    "a start that is no list": lambda v: v.update(start={"residual": True}),
    "a start recipe of nothing": lambda v: v.update(start=[{}]),
    "a start recipe with a name only": lambda v: v.update(start=[{"name": "mine"}]),
    "a start recipe with an unknown option": lambda v: v.update(start=[{"learning_rate": 0.1}]),
    "a start recipe with an option of the protocol": lambda v: v.update(start=[{"epochs": 3}]),
    "a start recipe with a wrong value": lambda v: v.update(start=[{"optimizer": "lion"}]),
    "a start recipe that is a number": lambda v: v.update(start=[3]),
    "no space": lambda v: v.pop("space"),
    "an empty space": lambda v: v.update(space={}),
    "an unknown key of study": lambda v: v["study"].update(trails=3),
    "an unknown key of confirm": lambda v: v["study"].update(confirm={"tops": 3}),
    "an unknown key of resources": lambda v: v["resources"].update(gpus=1),
    "an unknown score": lambda v: v["study"].update(metric="val_loss"),
    "a cost first": lambda v: v["study"].update(metric=["seconds", "val_dice_mean"]),
    "two costs": lambda v: v["study"].update(metric=["val_dice_WT", "seconds", "gpu_seconds"]),
    "no trials": lambda v: v["study"].update(trials=0),
    "trials in words": lambda v: v["study"].update(trials="many"),
    "half a trial": lambda v: v["study"].update(trials=2.5),
    "a truth value as number": lambda v: v["study"].update(trials=True),
    "no duration": lambda v: v["study"].update(time_budget="two days"),
    "a duration backwards": lambda v: v["study"].update(time_budget="30m 1h"),
    "no time": lambda v: v["study"].update(time_budget=0),
    "a target above 1": lambda v: v["study"].update(target=90),
    "another mode": lambda v: v["study"].update(mode="min"),
    "one fold": lambda v: v["study"].update(confirm={"folds": 1}),
    "confirm as a truth value": lambda v: v["study"].update(confirm=True),
    "another stopper": lambda v: v["early_stopping"].update(type="hyperband"),
    "a factor of 1": lambda v: v["early_stopping"].update(reduction_factor=1),
    "no trials at a rung": lambda v: v["early_stopping"].update(min_trials=0),
    "a margin above 1": lambda v: v["early_stopping"].update(margin=2),
    "a margin in words": lambda v: v["early_stopping"].update(margin="wide"),
    "another value": lambda v: v["early_stopping"].update(value="last"),
    "too much audit": lambda v: v["early_stopping"].update(audit=1.5),
    "another searcher": lambda v: v["searcher"].update(type="hyperopt"),
    "a text as truth value": lambda v: v["searcher"].update(wait_for_startup="yes please"),
    "one and a half GPUs": lambda v: v["resources"].update(gpu=1.5),
    "a GPU in words": lambda v: v["resources"].update(gpu="all"),
    "no core": lambda v: v["resources"].update(cpu=0),
    "an unknown option": lambda v: v["train"].update(batchsize=2),
    "an option of the launch": lambda v: v["train"].update(output_dir="here"),
    "an option of the study": lambda v: v["train"].update(seed=3),
    "an option below its limit": lambda v: v["train"].update(batch_size=0),
    "an option above its limit": lambda v: v["train"].update(dropout=1),
    "a word that an option lacks": lambda v: v["train"].update(optimizer="lion"),
    "a list that is too short": lambda v: v["train"].update(loss_weights=[1]),
    "a list with a wrong item": lambda v: v["train"].update(milestones=[10, 0]),
    "a number as truth value": lambda v: v["train"].update(augment=2),
    "a truth value as an option's number": lambda v: v["train"].update(dropout=True),
    "a searched unknown option": lambda v: v["space"].update(learning_rate={"uniform": [0, 1]}),
    "a searched option of the protocol": lambda v: v["space"].update(val_freq={"choice": [1, 2]}),
    "an unknown kind": lambda v: v["space"].update(lr={"log_uniform": [1e-4, 1e-2]}),
    "a kind that does not suit": lambda v: v["space"].update(optimizer={"uniform": [0, 1]}),
    "two kinds": lambda v: v["space"].update(lr={"uniform": [0.1, 1], "choice": [1]}),
    "no kind": lambda v: v["space"].update(lr={"when": {"optimizer": "sgd"}}),
    "a range without a kind": lambda v: v["space"].update(lr=[0.1, 1]),
    "one end": lambda v: v["space"].update(lr={"uniform": [0.1]}),
    "a step too many": lambda v: v["space"].update(lr={"uniform": [0.1, 1, 0.1]}),
    "an end of another type": lambda v: v["space"].update(lr={"uniform": ["a", "b"]}),
    "an end out of limits": lambda v: v["space"].update(ema_decay={"uniform": [0, 1]}),
    "a logarithm of zero": lambda v: v["space"].update(weight_decay={"loguniform": [0, 1]}),
    "a step of zero": lambda v: v["space"].update(weight_decay={"quniform": [0, 1, 0]}),
    "a choice of nothing": lambda v: v["space"].update(optimizer={"choice": []}),
    "a choice of one twice": lambda v: v["space"].update(optimizer={"choice": ["adam", "adam"]}),
    "a choice of what an option lacks": lambda v: v["space"].update(optimizer={"choice": ["adam", "lion"]}),
    "a choice without a list": lambda v: v["space"].update(optimizer={"choice": "adam"}),
    "a condition on no option": lambda v: v["space"].update(lr={"choice": [1], "when": {"optimiser": "adam"}}),
    "a condition on no value": lambda v: v["space"].update(lr={"choice": [1], "when": {"optimizer": []}}),
    "a condition on a value that an option lacks": lambda v: v["space"].update(
        lr={"choice": [1], "when": {"optimizer": "lion"}}
    ),
    "a prior of nothing": lambda v: v["space"].update(lr={"uniform": [0.1, 1], "prior": {"confidence": "low"}}),
    "an unknown confidence": lambda v: v["space"].update(
        lr={"uniform": [0.1, 1], "prior": {"at": 0.5, "confidence": "sure"}}
    ),
    "a prior at a word": lambda v: v["space"].update(lr={"uniform": [0.1, 1], "prior": {"at": "0.5 or so"}}),
    "weights of a range": lambda v: v["space"].update(lr={"uniform": [0.1, 1], "prior": {"weights": [1, 1]}}),
    "a number as prior of a choice": lambda v: v["space"].update(lr={"choice": [0.1, 1], "prior": {"at": 1}}),
    "a weight of zero": lambda v: v["space"].update(lr={"choice": [0.1, 1], "prior": {"weights": [1, 0]}}),
    "a prior that is a word": lambda v: v["space"].update(lr={"uniform": [0.1, 1], "prior": "high"}),
    "no range of several": lambda v: v["space"].update(lr=[]),
    "several ranges of which one is none": lambda v: v["space"].update(lr=[{"when": {"base_loss": "bce"}}]),
    "a condition that is a word": lambda v: v["space"].update(lr={"choice": [1], "when": "sgd"}),
    "a condition on a list, without a list": lambda v: v["space"].update(
        lr={"choice": [1], "when": {"loss_weights": [1, 1]}}
    ),
}  # fmt: skip


def generated(seed: int) -> Values:
    """A sweep's YAML that is right, with a few keys of each section."""
    rng = np.random.default_rng(seed)
    values: Values = {}
    for section, keys in ALLOWED.items():
        names = [name for name in keys if rng.random() < 0.4] or ["lr"] * (section == "space")
        values[section] = {name: copy.deepcopy(keys[name][rng.integers(len(keys[name]))]) for name in names}
    if "gpu" not in values["resources"]:
        values["resources"]["gpu"] = 1
    if rng.random() < 0.3:  # the defaults are in each of these spaces, or at the nearest value
        values["start"] = [[], [{"nesterov": True}], [{"name": "mine", "warmup_epochs": 0}]][rng.integers(3)]
    if values["train"].get("amp") is not None:
        values["space"].pop("amp", None)
    return values


def refused(values: Values, folder: Path) -> tuple[str, str]:
    """What `check` and what the schema find wrong with these values, written as YAML; "" for nothing."""
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(values))
    try:
        load_sweep_config(path)
        check = ""
    except InputError as error:
        check = str(error)
    found = next(VALIDATOR.iter_errors(yaml.load(path.read_text(), Loader=NumberLoader)), None)
    return check, found.message if found else ""


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(sweep_schema())


def test_check_and_the_schema_agree_on_200_files(tmp_path: Path) -> None:
    faults = list(FAULTS.items())
    for seed in range(200):
        values = generated(seed)
        name, fault = ("", None) if seed % 2 else faults[seed // 2 % len(faults)]
        if fault is not None:
            fault(values)
        check, schema = refused(values, tmp_path)
        assert bool(check) == bool(schema) == bool(name), f"{seed}, {name}: {check!r}, {schema!r}, {values}"


@pytest.mark.parametrize("name", FAULTS)
def test_both_refuse_each_fault(tmp_path: Path, name: str) -> None:
    values: Values = {section: {} for section in ALLOWED} | {"space": {"lr": {"uniform": [0.1, 1]}}}
    assert refused(values, tmp_path) == ("", "")
    FAULTS[name](values)
    check, schema = refused(values, tmp_path)
    assert check
    assert schema


@pytest.mark.parametrize("name", SPACES)
def test_a_shipped_space_names_the_schema_and_follows_it(name: str) -> None:
    text = (resources.files("search_spaces") / name).read_text()
    assert text.splitlines()[0] == "# yaml-language-server: $schema=sweep.schema.json"
    assert list(VALIDATOR.iter_errors(yaml.load(text, Loader=NumberLoader))) == []


def test_the_shipped_schema_is_that_of_the_code() -> None:
    shipped = (resources.files("search_spaces") / "sweep.schema.json").read_text()
    assert shipped == json.dumps(sweep_schema(), indent=1) + "\n", "run `make docs`"
