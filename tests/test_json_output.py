"""What the verbs print with --json: right by its schema, with the numbers of the text, and nothing beside it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from click.testing import Result
from helpers import voxtune as voxtune_process
from json_page import PAGE, json_page
from synthetic_run import make_synthetic_run
from typer.testing import CliRunner

from trainable.core.errors import InputError
from trainable.core.logger import init_logger
from trainable.evaluation.comparison import Comparison
from tune.analysis.json_output.difference import DifferenceItem
from tune.analysis.json_output.document import Document
from tune.analysis.json_output.outputs import OUTPUTS, json_schema
from tune.analysis.trial_rows import COLUMN_MEANINGS, trial_columns
from tune.cli import app
from tune.run.results import read_run


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 60 trials, some of which run, failed or ran out of memory."""
    return make_synthetic_run(tmp_path_factory.mktemp("json") / "run", trials=60, cases=2, gpus=4, running=3)


def voxtune(*words: object) -> Result:
    """Run a verb in this process, which has imported what it needs."""
    init_logger()
    return CliRunner().invoke(app, [str(word) for word in words])


def read(done: Result, verb: str) -> dict[str, Any]:
    """The JSON on standard output, checked by the verb's schema, which refuses unknown and missing keys."""
    content = json.loads(done.stdout, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert content["schema"] == f"voxtune/{verb}/1"
    jsonschema.validate(content, json_schema(verb))
    return content


def test_status_has_the_numbers_of_the_text(run_dir: Path) -> None:
    content = read(voxtune("status", run_dir, "--json"), "status")
    text = voxtune("status", run_dir).stdout
    assert all(f"{count} {status}" in text for status, count in content["counts"].items())
    assert content["state"] == "interrupted"
    assert content["trials_left"] == 0
    run = read_run(run_dir)
    assert [trial["score"] for trial in content["trials"]] == [trial.score for trial in run.trials]
    assert content["best"] == run.best().number
    best = content["trials"][content["best"]]
    assert f"{best['score']:.4f}" in text
    assert best["params"] == run.best().values
    assert [rung["epoch"] for rung in best["rungs"]] == [5, 15, 45]
    assert content["effort"]["epochs"] == sum(trial.epoch for trial in run.trials)


def test_show_has_the_curve_and_the_rungs_of_a_trial(run_dir: Path) -> None:
    run = read_run(run_dir)
    stopped = next(trial for trial in run.trials if trial.status == "stopped early")
    content = read(voxtune("show", run_dir, stopped.number, "--json"), "show")
    assert content["trial"]["rungs"][-1]["decision"] == "STOP"
    assert content["curve"][-1] == {"epoch": stopped.epoch, "score": stopped.intermediate[stopped.epoch]}
    assert content["recipe"]["lr"] == stopped.values["lr"]
    assert [event["kind"] for event in content["events"]] == ["trial_started", "trial_stopped", "trial_ended"]
    assert f"{content['trial']['rungs'][-1]['needed']:.4f}" in voxtune("show", run_dir, stopped.number).stdout


def test_best_has_the_trials_and_the_recipe_of_the_text_and_exports_all_the_same(run_dir: Path, tmp_path: Path) -> None:
    done = voxtune("best", run_dir, "--top", 3, "--json", "--export", tmp_path / "best.yaml")
    content = read(done, "best")
    assert (tmp_path / "best.yaml").exists()
    assert "best.yaml" in done.stderr
    run = read_run(run_dir)
    assert [trial["number"] for trial in content["trials"]] == [trial.number for trial in run.ranking[:3]]
    assert content["recipe"]["lr"] == run.best().values["lr"]
    assert content["default_recipe"]["lr"] == 3e-4
    text = voxtune("best", run_dir).stdout
    assert f"{content['recipe']['lr']:.5g}" in text
    assert content["pareto_front"] is None


def test_verify_has_the_findings_and_the_exit_code_of_the_text(run_dir: Path, tmp_path: Path) -> None:
    assert voxtune("verify", run_dir).exit_code == 0
    right = voxtune("verify", run_dir, "--json")
    assert right.exit_code == 0
    assert read(right, "verify")["ok"]
    metrics = run_dir / "trials" / "0000" / "metrics.csv"
    kept = metrics.read_text()
    metrics.write_text("\n".join(kept.splitlines()[:-1]) + "\n")
    try:
        wrong, text = voxtune("verify", run_dir, "--json"), voxtune("verify", run_dir)
    finally:
        metrics.write_text(kept)
    assert wrong.exit_code == text.exit_code == 1
    content = read(wrong, "verify")
    assert not content["ok"]
    findings = [finding for check in content["checks"] for finding in check["findings"]]
    assert findings
    assert all(finding in text.stdout for finding in findings)


def test_check_has_the_space_and_an_error_no_json() -> None:
    content = read(voxtune("check", "brats", "--json", "--set", "study.trials=7"), "check")
    assert (content["trials"], content["epochs"], content["rungs"]) == (7, 100, [5, 15, 45])
    momentum = next(item for item in content["space"] if item["name"] == "momentum")
    assert (momentum["kind"], momentum["range"], momentum["when"]) == ("uniform", [0.8, 0.99], {"optimizer": ["sgd"]})
    assert content["first_trials"][0]["lr"] == 3e-4
    wrong = voxtune_process("check", "brats", "--json", "--set", "study.trials=-1")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "study.trials is -1" in wrong.stderr


def test_importance_has_the_shares_of_the_text(run_dir: Path) -> None:
    content = read(voxtune("importance", run_dir, "--json"), "importance")
    lr = content["options"][0]
    assert (lr["name"], lr["verdict"]) == ("lr", "matters")
    assert f"{lr['share']:.2f} [{lr['low']:.2f}, {lr['high']:.2f}]" in voxtune("importance", run_dir).stdout


@pytest.mark.parametrize("verb", ["trials", "curves"])
def test_tables_are_right_by_their_schema(run_dir: Path, verb: str) -> None:
    done = voxtune(verb, run_dir, "--json")
    content = read(done, verb)
    assert done.stdout == voxtune(verb, run_dir, "--json", "-").stdout
    assert all(list(row) == content["columns"] for row in content["rows"])


@pytest.mark.parametrize("verb", ["status", "best", "importance", "verify"])
def test_a_folder_that_is_no_run_is_an_error_without_json(verb: str, tmp_path: Path) -> None:
    done = voxtune(verb, tmp_path, "--json")
    assert isinstance(done.exception, InputError)
    assert "no study.yaml there" in str(done.exception)
    assert done.stdout == ""


def test_what_cannot_be_estimated_is_null() -> None:
    nan = float("nan")
    item = DifferenceItem.from_comparison(Comparison(0.1, nan, nan, nan, None, None))
    assert json.loads(item.json_text())["low"] is None


def fields(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The properties of an output's schema and of the objects in it."""
    for part in (schema, *schema.get("$defs", {}).values()):
        yield from part["properties"].values()


@pytest.mark.parametrize("verb", OUTPUTS)
def test_a_schema_is_named_after_its_verb_and_each_field_is_described(verb: str) -> None:
    schema = json_schema(verb)
    assert schema["properties"]["schema"]["const"] == f"voxtune/{verb}/1"
    assert all(field["description"] for field in fields(schema))
    assert issubclass(OUTPUTS[verb], Document)


def test_the_page_of_the_outputs_is_up_to_date_and_explains_each_column(run_dir: Path) -> None:
    assert PAGE.read_text() == json_page(), "run `make docs`"
    patterns = [re.sub(r"<\w+>", r"\\w+", name) for name in COLUMN_MEANINGS]
    columns = trial_columns(read_run(run_dir).config)
    assert [name for name in columns if not any(re.fullmatch(pattern, name) for pattern in patterns)] == []
