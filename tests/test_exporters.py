"""A sweep copied to the real stores of MLflow and Weights & Biases, read back by their own code."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers import make_warm_start
from synthetic_run import make_synthetic_run

from trainable.core.errors import InputError
from trainable.core.locks import lock_folder
from trainable.training.training_log import TrainingLog, read_rows
from tune.cli import app
from tune.run.results import Run, read_run
from tune.viewers.mlflow_store import export_to_mlflow
from tune.viewers.sweep_copy import require_package, tags_of
from tune.viewers.wandb_store import export_to_wandb


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A sweep of twelve trials: one failed, one ran out of memory, two run."""
    folder = make_synthetic_run(tmp_path / "run", trials=12, running=2, failed_every=6, cases=2, gpus=2)
    with lock_folder(folder):
        return read_run(folder)


def runs_of(uri: str) -> tuple[Any, Any, list[Any]]:
    """A client of an MLflow store, the sweep's run in it and those of its trials, in their order."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(uri)
    found = client.search_runs([client.get_experiment_by_name("brats").experiment_id], max_results=100)
    [parent] = [copy for copy in found if "voxtune.trial" not in copy.data.tags]
    trials = sorted(set(found) - {parent}, key=lambda copy: int(copy.data.tags["voxtune.trial"]))
    return client, parent, trials


@pytest.mark.parametrize("store", ["file", pytest.param("sqlite", marks=pytest.mark.slow)])
def test_mlflow_has_each_trial_once_with_its_options_curve_score_and_end(
    tmp_path: Path, run: Run, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE", raising=False)
    uri = str(tmp_path / "mlruns") if store == "file" else f"sqlite:///{tmp_path}/mlflow.db"
    assert export_to_mlflow(run, uri, "brats").startswith("12 trials copied")
    assert export_to_mlflow(run, uri, "brats").startswith("0 trials copied")
    client, parent, copies = runs_of(Path(uri).as_uri() if store == "file" else uri)
    assert len(copies) == 12
    for trial, copy in zip(run.trials, copies, strict=True):
        assert copy.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert copy.data.tags["status"] == trial.status
        assert copy.data.params["lr"] == str(trial.values["lr"])
        assert copy.data.params["optimizer"] == trial.values["optimizer"]
        assert copy.info.run_name.startswith(f"{trial.number:04d} ")
        rows = read_rows(run.dir.trial(trial.number).metrics)
        curve = client.get_metric_history(copy.info.run_id, "dice/val_mean")
        assert [(point.step, point.value) for point in curve] == [
            (int(row["epoch"]), float(row["val_dice_mean"])) for row in rows
        ]
        assert copy.data.metrics.get("score") == trial.score
    ends = {"failed": "FAILED", "running": "RUNNING"}
    assert [copy.info.status for copy in copies] == [ends.get(trial.status, "FINISHED") for trial in run.trials]
    assert {trial.status for trial in run.trials} >= {"failed", "running", "stopped early", "complete"}
    assert parent.data.metrics["score"] == run.best().score
    assert [file.path for file in client.list_artifacts(parent.info.run_id)] == ["study.yaml"]


def test_mlflow_has_the_scores_of_imported_trials_whose_curves_are_elsewhere(tmp_path: Path) -> None:
    run, uri = read_run(make_warm_start(tmp_path)), (tmp_path / "mlruns").as_uri()
    assert export_to_mlflow(run, uri, "brats").startswith(f"{len(run.trials)} trials copied")
    assert export_to_mlflow(run, uri, "brats").startswith("0 trials copied")
    client, _, copies = runs_of(uri)
    for trial, copy in zip(run.trials, copies, strict=True):
        [point] = client.get_metric_history(copy.info.run_id, "score")
        assert (point.value, point.step) == (trial.score, trial.best_epoch)


def test_a_trial_that_was_not_stopped_has_no_reason_of_a_stop(tmp_path: Path) -> None:
    trials = read_run(make_synthetic_run(tmp_path / "run", trials=12, cases=1, failed_every=0)).trials
    assert (trials[0].status, trials[0].kept) == ("complete", "default")
    stopped = [trial.number for trial in trials if trial.status == "stopped early"]
    assert [trial.number for trial in trials if "reason" in tags_of(trial)] == stopped != []


def test_mlflow_gets_the_epochs_that_came_since_the_last_call(tmp_path: Path, run: Run) -> None:
    uri = (tmp_path / "mlruns").as_uri()
    export_to_mlflow(run, uri, "brats")
    going = next(trial for trial in run.trials if trial.status == "running")
    row = {**read_rows(run.dir.trial(going.number).metrics)[-1], "epoch": going.epoch + 1, "val_dice_mean": 0.5}
    TrainingLog(run.dir.trial(going.number).path, tmp_path / "board").write(row)
    assert export_to_mlflow(run, uri, "brats").startswith("1 trial copied")
    client, _, copies = runs_of(uri)
    curve = client.get_metric_history(copies[going.number].info.run_id, "dice/val_mean")
    assert [point.step for point in curve] == [*range(5, going.epoch + 1, 5), going.epoch + 1]
    assert curve[-1].value == 0.5


@pytest.mark.slow
def test_wandb_has_each_trial_once_without_a_network(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert export_to_wandb(run, tmp_path, "brats").startswith("12 trials written")
    assert export_to_wandb(run, tmp_path, "brats").startswith("0 trials written")
    copies = [wandb_run(next(folder.glob("*.wandb"))) for folder in (tmp_path / "wandb").glob("offline-run-*")]
    assert len(copies) == 12 + 1
    by_name = {copy["name"]: copy for copy in copies}
    assert by_name["run"]["files"] >= {"study.yaml"}
    for trial in run.trials:
        [copy] = [copy for name, copy in by_name.items() if name.startswith(f"{trial.number:04d} ")]
        assert copy["config"]["lr"] == trial.values["lr"]
        assert copy["group"] == "run"
        assert copy["tags"] == [trial.status]
        rows = read_rows(run.dir.trial(trial.number).metrics)
        assert copy["curve"] == [float(row["val_dice_mean"]) for row in rows]
        assert copy["exit"] == int(trial.status == "failed")


def records_in(data: bytes) -> Iterator[bytes]:
    """The records of a file of wandb: in blocks of 32 KiB, pieces with a head of checksum, length and kind."""
    record, place = b"", 7  # behind the file's own head
    while place + 7 <= len(data):
        if 0x8000 - place % 0x8000 < 7:  # no room for a head: padding
            place += 0x8000 - place % 0x8000
            continue
        length, kind = struct.unpack_from("<HB", data, place + 4)
        record += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or its last piece
            yield record
            record = b""


def wandb_run(path: Path) -> dict[str, Any]:
    """What a file of wandb says of its run."""
    from wandb.proto.wandb_internal_pb2 import Record

    found: dict[str, Any] = {"curve": [], "files": set(), "config": {}}
    for record in map(Record.FromString, records_in(path.read_bytes())):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            found |= {"name": record.run.display_name, "group": record.run.run_group, "tags": list(record.run.tags)}
            found["config"] |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        elif kind == "history":
            shown = [item for item in record.history.item if "dice/val_mean" in (item.key, *item.nested_key)]
            found["curve"] += [json.loads(item.value_json) for item in shown]
        elif kind == "files":
            found["files"] |= {file.path for file in record.files.files}
        elif kind == "exit":
            found["exit"] = record.exit.exit_code
    return found


@pytest.mark.parametrize("tool", ["mlflow", "wandb"])
def test_a_package_that_is_missing_is_named(tool: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tune.viewers.sweep_copy.find_spec", lambda _: None)
    with pytest.raises(InputError, match=rf"needs the package {tool}: pip install 'voxtune\[{tool}\]'"):
        require_package(tool)


def test_a_store_that_does_not_answer_is_named(run: Run) -> None:
    with pytest.raises(InputError, match="MLflow at nowhere://x: .*nowhere"):
        export_to_mlflow(run, "nowhere://x", "brats")


def test_a_trial_that_is_interrupted_is_killed_in_mlflow_until_it_goes_on(tmp_path: Path, run: Run) -> None:
    uri = (tmp_path / "mlruns").as_uri()
    going = [trial.number for trial in run.trials if trial.status == "running"]
    for state, expected in ((run, "RUNNING"), (read_run(run.folder), "KILLED"), (run, "RUNNING")):
        export_to_mlflow(state, uri, "brats")
        _, parent, copies = runs_of(uri)
        assert {copies[number].info.status for number in going} == {expected}
        assert parent.info.status == expected


def test_a_trial_that_starts_while_a_sweep_is_copied_is_left_for_the_next_copy(tmp_path: Path, run: Run) -> None:
    read_before = replace(run, trials=run.trials[:-1])
    assert export_to_mlflow(read_before, str(tmp_path / "mlruns"), "brats").startswith("11 trials copied")
    assert export_to_mlflow(run, str(tmp_path / "mlruns"), "brats").startswith("1 trial copied")


def test_wandb_is_written_to_a_folder_not_to_an_address(run: Run) -> None:
    with pytest.raises(InputError, match=r"--uri https://wandb.example: expected a folder"):
        app(["export", str(run.folder), "--to", "wandb", "--uri", "https://wandb.example"], standalone_mode=False)


def test_one_destination_is_needed(run: Run) -> None:
    for words in ((), ("--to", "mlflow", "--bundle", "b")):
        with pytest.raises(InputError, match="expected one of --bundle DIR"):
            app(["export", str(run.folder), *words], standalone_mode=False)


def test_an_export_leaves_the_run_as_it_was(tmp_path: Path, run: Run) -> None:
    files = {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()}
    export_to_mlflow(run, str(tmp_path / "mlruns"), "brats")
    assert {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()} == files
