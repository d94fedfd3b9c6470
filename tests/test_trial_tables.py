"""Trials and learning curves as tables for other programs: CSV, JSON and Parquet of one real table."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pandas
import pytest
from helpers import voxtune_here
from synthetic_run import make_synthetic_run

import voxtune as vt
from tune.analysis.table_files import csv_text, json_text
from tune.analysis.trial_rows import trial_columns, trial_rows
from tune.run.results import read_run


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 60 trials with stopped, complete, failed and running ones, and one out of memory."""
    return make_synthetic_run(tmp_path_factory.mktemp("tables") / "run", trials=60, cases=2, gpus=4, running=3)


def test_the_same_table_is_written_in_each_format_and_given_in_python(run_dir: Path, tmp_path: Path) -> None:
    files = {form: tmp_path / f"trials.{form}" for form in ("csv", "json", "parquet")}
    done = voxtune_here("trials", run_dir, *(word for form, path in files.items() for word in (f"--{form}", path)))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == f"wrote {files['csv']}: 60 rows, 52 columns"
    ours = vt.open(run_dir).trials()
    content = json.loads(files["json"].read_text())
    assert content["schema"] == "voxtune/trials/1"
    tables = [pandas.read_csv(files["csv"]), pandas.DataFrame(content["rows"]), pandas.read_parquet(files["parquet"])]
    for table in tables:
        assert list(table.columns) == list(ours.columns) == content["columns"]
        for name in ("number", "score", "rung_5_needed", "gpu_hours", "params_lr", "params_momentum"):
            assert table[name].to_numpy() == pytest.approx(ours[name].to_numpy(), nan_ok=True), name
        assert list(table["status"]) == list(ours["status"])
        assert list(table["params_residual"]) == list(ours["params_residual"])
    assert json.loads(tables[0]["params_loss_weights"][3]) == ours["params_loss_weights"][3]


def test_a_row_says_why_and_when_a_trial_ended_and_what_was_needed_at_its_rung(run_dir: Path) -> None:
    run = read_run(run_dir)
    rows = trial_rows(run)
    assert all(list(row) == trial_columns(run.config) for row in rows)
    stopped = next(row for row in rows if row["status"] == "stopped early")
    epoch = stopped["stop_epoch"]
    assert stopped[f"rung_{epoch}_decision"] == "STOP"
    assert stopped[f"rung_{epoch}_value"] < stopped[f"rung_{epoch}_needed"]
    value, needed = stopped[f"rung_{epoch}_value"], stopped[f"rung_{epoch}_needed"]
    assert stopped["reason"] == f"stopped early at epoch {epoch} of 100: {value:.4f}, {needed:.4f} was needed"
    assert stopped["gpu_hours"] == stopped["seconds"] / 3600
    assert stopped["started"] < stopped["ended"]
    by_status = {row["status"]: row for row in rows}
    assert by_status["complete"]["reason"] == "complete at epoch 100 of 100"
    error = "RuntimeError: CUDA error: unspecified launch failure"
    assert (by_status["failed"]["error"], by_status["failed"]["reason"]) == (
        error,
        f"failed at epoch 0 of 100: {error}",
    )
    assert by_status["out of memory"]["reason"] == "out of memory at epoch 0 of 100"
    running = by_status["interrupted"]  # no process drives the run
    assert running["ended"] is None
    assert running["started"] is not None


def test_curves_have_each_epoch_of_each_trial(run_dir: Path) -> None:
    done = voxtune_here("curves", run_dir)
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    scores: dict[int, float] = {}
    for row in rows:
        scores[int(row["trial"])] = max(scores.get(int(row["trial"]), 0.0), float(row["val_dice_mean"]))
    assert scores == {t.number: t.score for t in read_run(run_dir).trials if t.score is not None}
    assert {row["steps"] for row in rows} == {"200"}


def test_a_reader_that_has_seen_enough_is_no_error(run_dir: Path) -> None:
    command = [sys.executable, "-m", "tune", "curves", str(run_dir)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=os.getcwd()) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


def test_two_formats_on_standard_output_are_refused(run_dir: Path) -> None:
    done = voxtune_here("trials", run_dir, "--csv", "-", "--json", "-")
    assert (done.returncode, done.stdout) == (2, "")
    assert "only one format can go to standard output" in done.stderr


def test_what_csv_and_json_lack_is_written_so_that_they_can_be_read() -> None:
    rows = [{"a": float("nan"), "b": [1.0, 2.0], "c": True}, {"a": 1.5, "b": None}]
    assert csv_text(rows, ["a", "b", "c"]) == 'a,b,c\n,"[1.0, 2.0]",true\n1.5,,\n'
    assert json.loads(json_text(rows, ["a", "b"], "s"))["rows"] == [
        {"a": None, "b": [1.0, 2.0]},
        {"a": 1.5, "b": None},
    ]


def test_a_file_that_cannot_be_written_is_named(run_dir: Path, tmp_path: Path) -> None:
    missing = voxtune_here("trials", run_dir, "--parquet", tmp_path / "none" / "trials.parquet")
    assert missing.returncode == 2
    assert missing.stderr == (
        f"error: {tmp_path}/none: no such folder; make it, or choose another place with --parquet\n"
    )
    folder = voxtune_here("curves", run_dir, "--csv", tmp_path)
    assert folder.returncode == 2
    assert folder.stderr == (
        f"error: {tmp_path} is a folder; give --csv the name of a file, such as {tmp_path}/table.csv\n"
    )
    unwritable = voxtune_here("trials", run_dir, "--csv", "/proc/trials.csv")
    assert unwritable.returncode == 2
    assert unwritable.stderr.startswith("error: /proc/trials.csv: cannot be written (")
