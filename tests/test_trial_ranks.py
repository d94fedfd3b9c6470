"""Trials on two GPUs: real sweeps on a cluster that claims two GPUs; they train on the CPU by gloo."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from helpers import SPACE, rows, run_fit, start, voxtune, wait_for

from trainable.core.errors import InputError
from trainable.data.prepare import Data
from trainable.data.split import load_split, save_split
from tune.driver.processes.kept_ranks import end_ranks
from tune.driver.processes.training_process import TrainingEnd, TrainingProcess, TrainingSpec
from tune.run.events import EventKind, read_events
from tune.run.results import read_run
from tune.run.run_dir import RunDir
from tune.run.verify import verify
from tune.spec.sweep_config import make_sweep_config, undivided_steps

TWO_GPUS = {"RAY_OVERRIDE_RESOURCES": '{"CPU": 1, "GPU": 2}', "RAY_worker_niceness": "0"}
MARK = "VOXTUNE_TEST_RUN"  # in the environment of all processes of a test


def rank_pids(mark: str) -> list[int]:
    """The ids of the processes that train together in a sweep whose environment has a mark."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            marked = f"{MARK}={mark}".encode() in (folder / "environ").read_bytes().split(b"\0")
            if marked and b"rank_link" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except (OSError, ProcessLookupError):
            continue
    return sorted(found)


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def gone_after(pids: list[int], mark: str) -> float:
    """Seconds until none of these processes trains any more; at most 60."""
    started = time.monotonic()
    while set(pids) & set(rank_pids(mark)) and time.monotonic() < started + 60:
        time.sleep(0.02)
    return time.monotonic() - started


@pytest.mark.slow
def test_trials_on_two_gpus_are_stopped_killed_and_resumed_and_no_process_is_left(
    prepared: Data, phantoms: Path, tmp_path: Path
) -> None:
    space, run = tmp_path / "space.yaml", RunDir(tmp_path / "run")
    space.write_text(SPACE.replace("gpu: 0", "gpu: 2"))
    words = ["launch", space, "--data", phantoms, "--out", run.path, "--set", f"train.cache_dir={prepared.folder}"]
    process = start("-m", "tune", *words, "--no_report", **TWO_GPUS, **{MARK: str(tmp_path)})
    mark, trial = str(tmp_path), run.trial(0).path
    wait_for(process, lambda: len(rows(trial)) >= 1)
    ranks = rank_pids(mark)
    assert len(ranks) == 2
    os.kill(ranks[1], signal.SIGKILL)
    assert gone_after(ranks, mark) < 5
    wait_for(process, lambda: len(rows(trial)) >= 2)
    ranks = rank_pids(mark)
    assert len(ranks) == 2
    [worker] = {parent_of(pid) for pid in ranks}
    os.kill(worker, signal.SIGKILL)
    assert gone_after(ranks, mark) < 5
    wait_for(process, lambda: len(rows(trial)) >= 3)
    ranks = rank_pids(mark)
    process.terminate()
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, output
    assert gone_after(ranks, mark) < 5

    done = voxtune("resume", run.path, **TWO_GPUS)
    assert done.returncode == 0, done.stdout + done.stderr
    found = read_run(run.path)
    assert not any(verify(found).values())
    assert all(trial.finished or trial.status == "stopped early" for trial in found.trials)
    assert not rank_pids(mark)
    events = read_events(run.events)
    killed = [event.text for event in events if event.kind == EventKind.TRIAL_RETRIED]
    assert "process 1 of the 2 that train together was killed by SIGKILL" in killed[0]
    assert "The actor is dead because its worker process has died" in killed[1]
    assert len(killed) == 2
    begun = [event.time for event in events if event.kind == EventKind.TRIAL_STARTED]
    stops = [event.time for event in events if event.kind == EventKind.TRIAL_STOPPED]
    assert stops
    for stop in stops[:-1]:
        assert min(time for time in begun if time > stop) < stop + 5
    assert all(event.gpus == (0, 1) for event in events if event.kind == EventKind.TRIAL_STARTED)

    alone = found.recipe(found.trial(0)).model_copy(update={"output_dir": tmp_path / "alone", "device": "cpu"})
    results = run_fit(alone, Data(prepared.folder, load_split(run.split)))
    assert [int(row["epoch"]) for row in rows(trial)] == [result.epoch for result in results]
    for row, result in zip(rows(trial), results, strict=True):  # Adam makes more of a difference in rounding
        assert float(row["avg_total_loss"]) == pytest.approx(result.stats.avg_total_loss, rel=0.01)


@pytest.mark.parametrize(
    ("gpu", "options", "searched", "refused"),
    [
        (2, {"batch_size": 2}, {}, ""),
        (1, {"batch_size": 1}, {}, ""),
        (0.5, {"batch_size": 1}, {}, ""),
        (4, {"batch_size": 3}, {"accumulation_steps": {"choice": [4, 8]}}, ""),
        (4, {"batch_size": 1, "accumulation_steps": 6}, {}, "batch_size 1 x accumulation_steps 6.*of 1, 2, 3, 6, "),
        (2, {}, {"batch_size": {"randint": [2, 6]}}, "batch_size 3 x accumulation_steps 1.*of 1, which divides every"),
        (
            4, {"batch_size": 2},
            {"accumulation_steps": {"choice": [2, 3], "when": {"optimizer": "sgd"}}, "optimizer": {"choice": ["sgd"]}},
            "batch_size 2 x accumulation_steps 3.*of 1, 2, which divide every recipe of this space, or values of both",
        ),
    ],
)  # fmt: skip
def test_a_recipe_of_the_space_whose_step_cannot_be_divided_is_refused_with_what_can(
    gpu: float, options: dict[str, Any], searched: dict[str, Any], refused: str
) -> None:
    values = {"train": options, "resources": {"gpu": gpu}, "space": {"lr": {"loguniform": [1e-4, 1e-2]}, **searched}}
    if not refused:
        assert make_sweep_config(values).resources.gpu == gpu
        return
    with pytest.raises(InputError, match=f"^resources.gpu is {gpu}, but a step of .* patches .{refused}"):
        make_sweep_config(values)
    begun = {**values, "record": {"attempts": ["run-1"]}}  # by an older version, with which a GPU was idle
    assert undivided_steps(make_sweep_config(begun))


def test_what_cannot_be_divided_is_refused_before_anything_is_written(phantoms: Path, tmp_path: Path) -> None:
    space = tmp_path / "space.yaml"
    space.write_text(SPACE.replace("gpu: 0", "gpu: 3"))
    for verb in (["check", space], ["launch", space, "--data", phantoms, "--out", tmp_path / "run"]):
        done = voxtune(*verb)
        assert done.returncode == 2
        assert "resources.gpu is 3, but a step of 2 patches (batch_size 2 x accumulation_steps 1) cannot" in done.stderr
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_training_of_a_confirmation_or_an_ensemble_takes_the_gpus_of_a_trial(prepared: Data, tmp_path: Path) -> None:
    small = {"depth": 3, "base_channels": 4, "target_shape": [16, 16, 16], "patches_per_epoch": 8, "num_workers": 0}
    save_split(prepared.split, tmp_path / "split.json")
    places = {"output_dir": str(tmp_path / "one"), "cache_dir": str(prepared.folder), "device": "cpu", "epochs": 2}
    recipe = {**small, **places, "split_file": str(tmp_path / "split.json")}
    process = TrainingProcess(1, 2, str(tmp_path / ".workers"))
    try:
        assert process.run(TrainingSpec(recipe, False, None, None)) == TrainingEnd()
        assert "device: 2 x cpu" in (tmp_path / "one" / "stdout.log").read_text()
        assert [row["epoch"] for row in rows(tmp_path / "one")] == ["1", "2"]
        other = {**recipe, "output_dir": str(tmp_path / "two"), "batch_size": 1}
        refused = process.run(TrainingSpec(other, False, None, None))
        assert "a step of 1 patches" in refused.error
    finally:
        end_ranks()
