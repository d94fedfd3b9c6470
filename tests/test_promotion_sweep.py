"""A real sweep that pauses its trials at a rung, killed before and after it decides who goes on."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from helpers import SPACE, rows, start_voxtune, voxtune, wait_for

from trainable.data.prepare import Data
from tune.run.events import EventKind, read_events
from tune.run.results import Run, read_run
from tune.run.verify import verify

RUNG = 2


@pytest.fixture
def space(tmp_path: Path) -> Path:
    """Five trials of six epochs, of which two are promoted at epoch 2."""
    path = tmp_path / "space.yaml"
    text = SPACE.replace("type: asha", "type: promote").replace("reduction_factor: 2", "reduction_factor: 3")
    path.write_text(text.replace("epochs: 4", "epochs: 6"))
    return path


def statuses(run: Path) -> list[str]:
    return [trial.status for trial in read_run(run).trials] if (run / "study.yaml").exists() else []


def nothing_wrong(run: Run) -> bool:
    return not any(verify(run).values())


@pytest.mark.slow
def test_trials_pause_and_the_best_go_on_whenever_the_sweep_is_killed(
    space: Path, phantoms: Path, prepared: Data, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    words = [space, "--data", phantoms, "--out", folder, "--set", f"train.cache_dir={prepared.folder}"]
    process = start_voxtune("launch", *words)
    wait_for(process, lambda: statuses(folder).count("paused") == 2, seconds=300)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert {"paused"} <= set(statuses(folder)) <= {"paused", "interrupted"}
    assert nothing_wrong(read_run(folder))
    assert "2 paused" in voxtune("status", folder).stdout

    process = start_voxtune("resume", folder)
    wait_for(process, lambda: any(trial.epoch > RUNG for trial in read_run(folder).trials), seconds=600)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    run = read_run(folder)
    assert nothing_wrong(run)
    values = sorted((trial.rungs[RUNG].value for trial in run.trials), reverse=True)
    assert len(values) == 5
    going = {trial.number for trial in run.trials if trial.status != "stopped early"}
    assert going == {t.number for t in run.trials if t.rungs[RUNG].value >= values[1] or t.number == 0}

    done = voxtune("resume", folder)
    assert done.returncode == 0, done.stdout + done.stderr
    run = read_run(folder)
    assert nothing_wrong(run)
    assert {trial.number for trial in run.trials if trial.status == "complete"} == going
    for trial in run.trials:
        reached = 6 if trial.number in going else RUNG
        assert [int(row["epoch"]) for row in rows(folder / "trials" / f"{trial.number:04d}")] == list(
            range(1, reached + 1)
        )
    assert run.best().finished
    assert run.dir.best_model.exists()
    noted = [event.kind for event in read_events(run.dir.events)]
    assert noted.count(EventKind.TRIAL_PAUSED) == 5
    ended = [event.trial for event in read_events(run.dir.events) if event.kind == EventKind.TRIAL_ENDED]
    assert sorted(ended) == list(range(5))


@pytest.mark.slow
def test_a_spent_budget_of_time_leaves_trials_paused(
    space: Path, phantoms: Path, prepared: Data, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    words = [space, "--data", phantoms, "--out", folder, "--set", f"train.cache_dir={prepared.folder}"]
    process = start_voxtune("launch", *words)
    wait_for(process, lambda: "paused" in statuses(folder))
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert f"go on with: voxtune resume {folder}" in output
    resumed = voxtune("resume", folder, "--set", "study.time_budget=1s")
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert "stopped by study.time_budget, which is over" in resumed.stdout
    assert "paused" in statuses(folder)
    assert "stopped early" not in statuses(folder)
    shown = voxtune("show", folder, "0").stdout
    assert "paused at epoch 2 of 6 until all trials are there; the best ones go on then" in shown
