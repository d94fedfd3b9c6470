"""`voxtune estimate` and `launch --hours`, on phantoms: what is measured, told, chosen and kept."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import yaml
from helpers import SPACE, SWEEP, voxtune, voxtune_here

from trainable.core.errors import InputError
from trainable.data.prepare import Data
from trainable.data.split import Split
from tune.analysis.json_output.estimate import EstimateOutput
from tune.driver.measurement.recipe_timing import time_recipe
from tune.run.results import read_run
from tune.spec.sweep_config import make_sweep_config

TINY = SPACE.replace("depth: 3", "depth: 2").replace("patches_per_epoch: 24", "patches_per_epoch: 8")


@pytest.fixture
def space(tmp_path: Path) -> Path:
    """A YAML of short trainings, whose batches make steps of two sizes."""
    path = tmp_path / "space.yaml"
    path.write_text(TINY + "  batch_size: {choice: [1, 4]}\n")
    return path


@pytest.mark.slow
def test_an_estimate_measures_and_tells_the_same_as_text_and_as_json(space: Path, phantoms: Path) -> None:
    done = voxtune("estimate", space, "--data", phantoms, "--json")
    assert done.returncode == 0, done.stderr
    told = EstimateOutput.model_validate(json.loads(done.stdout))
    assert told.device.startswith("CPU")
    assert told.default.epoch_seconds > 0
    assert told.default.validation_seconds > 0
    assert told.largest.memory_bytes == told.device_memory_bytes == 0
    (forecast,) = told.forecasts
    assert (forecast.gpus, forecast.plan) == (0, None)
    assert forecast.trials.p90 == 5
    assert 5 <= forecast.epochs.p10 <= forecast.epochs.p90 <= 20
    assert told.cache_bytes > 0
    text = voxtune("estimate", space, "--data", phantoms, "--hours", 1)
    assert text.returncode == 0, text.stderr
    assert "1 h on this CPU, " in text.stdout
    assert max(map(len, text.stdout.splitlines())) <= 80


@pytest.mark.slow
def test_a_launch_with_hours_says_its_plan_keeps_it_and_ends_in_time(
    space: Path, phantoms: Path, tmp_path: Path
) -> None:
    run, hours = tmp_path / "run", 0.05
    started = time.monotonic()
    done = voxtune("launch", space, "--data", phantoms, "--out", run, "--hours", hours, "--set", "train.epochs=4")
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - started < 1.15 * hours * 3600  # Python's start and end are not counted
    result = read_run(run)
    plan = result.config.record.plan
    assert plan is not None
    assert plan in done.stdout
    assert f": {result.config.budget.trials} trials of up to 4 epochs" in plan
    stored = yaml.safe_load((run / "study.yaml").read_text())
    assert stored["study"]["trials"] == result.config.budget.trials
    assert 0 < stored["study"]["time_budget"] < hours * 3600
    assert result.ranking


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--hours", "0"), "--hours 0: expected a number of hours above 0"),
        (("--gpus", "two"), "--gpus two: expected numbers of GPUs, such as 1,2,4,8"),
        (("--gpus", "1,0"), "--gpus 1,0: expected numbers of GPUs"),
        (("--gpus", "2"), "--gpus: these trials train on the CPU"),
        (("--set", "study.trials=0"), "study.trials is 0; expected"),
    ],
)
def test_a_wrong_argument_is_refused_before_anything_is_measured(
    space: Path, phantoms: Path, words: tuple[str, ...], message: str
) -> None:
    done = voxtune_here("estimate", space, "--data", phantoms, *words)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_recipe_that_fails_while_it_is_measured_is_told_with_the_last_line_of_its_error(tmp_path: Path) -> None:
    config = make_sweep_config({**SWEEP, "resources": {"gpu": 0}})
    missing = Data(tmp_path / "missing", Split(("a",), ("b",), ()))
    with pytest.raises(
        InputError, match=r"^a recipe could not be tried out: [\w.]+Error: .*missing.*; `voxtune train` "
    ) as e:
        time_recipe(config, config.base_config(), missing, 1)
    assert "\n" not in str(e.value)


def test_a_launch_with_wrong_hours_makes_no_folder(space: Path, phantoms: Path, tmp_path: Path) -> None:
    done = voxtune_here("launch", space, "--data", phantoms, "--out", tmp_path / "run", "--hours", "-3")
    assert done.returncode == 2
    assert "--hours -3: expected a number of hours above 0" in done.stderr
    assert not (tmp_path / "run").exists()
