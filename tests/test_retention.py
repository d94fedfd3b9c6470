"""Which checkpoints stay on disk, in a folder with the layout of Ray."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from optuna.trial import TrialState

from trainable.core.errors import InputError
from tune.run.results import Run, TrialResult
from tune.run.retention import Retention, check_disk_space
from tune.run.run_dir import RunDir
from tune.search.asha import PAUSE, RungDecision
from tune.spec.sweep_config import make_sweep_config


def run_of(folder: Path, trials: list[TrialResult], keep_top: int = 5) -> Run:
    study = make_sweep_config({"space": {"lr": {"loguniform": [1e-5, 1e-2]}}, "resources": {"keep_top": keep_top}})
    return Run(RunDir(folder), study.with_record(attempts=["run-1", "run-2"]), trials)


def trial(
    number: int, state: TrialState, score: float, checkpoint: str | None = "", end_reason: str = ""
) -> TrialResult:
    last = f"run-2/{number:04d}/checkpoint_000002" if checkpoint == "" else checkpoint
    return TrialResult(number, state, end_reason, score, 1, 1, {}, {}, 1.0, last, "")


def write(run: Path, number: int) -> None:
    """One checkpoint of a first attempt and two of a second, each of two files."""
    for folder in ("run-1", "run-2"):
        for index in (1, 2) if folder == "run-2" else (7,):
            home = run / "ray" / folder / f"{number:04d}" / f"checkpoint_{index:06d}"
            home.mkdir(parents=True)
            (home / "latest.pth").write_text("state")
            (home / "best_model.pth").write_text("state")
    (run / "ray" / "run-2" / "tuner.pkl").touch()


def left(run: Path, number: int) -> list[str]:
    found = (run / "ray").glob(f"*/{number:04d}/checkpoint_*/*")
    return sorted(str(path.relative_to(run / "ray")) for path in found)


def test_a_paused_trial_keeps_its_last_checkpoint_only(tmp_path: Path) -> None:
    paused = replace(trial(0, TrialState.RUNNING, 0.5), rungs={1: RungDecision(0.5, PAUSE)})
    write(tmp_path, 0)
    Retention(run_of(tmp_path, [paused])).apply(run_of(tmp_path, [paused]))
    assert left(tmp_path, 0) == [f"run-2/0000/checkpoint_000002/{name}.pth" for name in ("best_model", "latest")]


def test_a_sweep_that_pauses_its_trials_needs_room_for_a_whole_checkpoint_of_each(tmp_path: Path) -> None:
    values = {"space": {"lr": {"loguniform": [1e-5, 1e-2]}}, "study": {"trials": 10}}
    lines = [
        check_disk_space(make_sweep_config({**values, "early_stopping": {"type": kind}}), str(tmp_path), 2)
        for kind in ("asha", "promote")
    ]
    assert [line.split()[3] for line in lines] == ["19", "29"]


def test_each_kind_of_trial_keeps_what_it_needs(tmp_path: Path) -> None:
    run_folder = tmp_path / "run #1 with spaces"
    states = [TrialState.COMPLETE, TrialState.PRUNED, TrialState.PRUNED, TrialState.RUNNING, TrialState.FAIL]
    trials = [trial(n, state, 0.9 - n / 10, end_reason="epochs" if n == 0 else "") for n, state in enumerate(states)]
    for item in trials:
        write(run_folder, item.number)
    other = run_folder / "ray" / "another_run-1" / "0002" / "checkpoint_000001"
    other.mkdir(parents=True)  # runs may share one storage
    run = run_of(run_folder, trials, keep_top=2)
    Retention(run).apply(run)
    assert other.exists()
    assert left(run_folder, 0) == ["run-2/0000/checkpoint_000002/best_model.pth"]
    assert left(run_folder, 1) == ["run-2/0001/checkpoint_000002/best_model.pth"]  # the second best of all
    assert left(run_folder, 2) == []
    for number in (3, 4):  # their last two
        files = [f"run-2/{number:04d}/checkpoint_00000{index}" for index in (1, 2)]
        assert left(run_folder, number) == [f"{file}/{name}.pth" for file in files for name in ("best_model", "latest")]
    assert (run_folder / "ray" / "run-2" / "tuner.pkl").exists()


def test_a_stopped_trial_that_falls_out_of_the_best_loses_its_checkpoint(tmp_path: Path) -> None:
    retention, trials = Retention(run_of(tmp_path, [], keep_top=2)), []
    for number in range(6):
        write(tmp_path, number)
        trials.append(trial(number, TrialState.PRUNED, score=0.1 * number))
        retention.apply(run_of(tmp_path, trials, keep_top=2))
        assert [n for n in range(number + 1) if left(tmp_path, n)] == [n for n in (number - 1, number) if n >= 0]


def test_the_best_keeps_its_checkpoint_for_any_keep_top(tmp_path: Path) -> None:
    trials = [trial(0, TrialState.PRUNED, 0.8), trial(1, TrialState.PRUNED, 0.9)]
    for item in trials:
        write(tmp_path, item.number)
    run = run_of(tmp_path, trials, keep_top=0)
    Retention(run).apply(run)
    assert left(tmp_path, 0) == []
    assert left(tmp_path, 1) == ["run-2/0001/checkpoint_000002/best_model.pth"]


def test_a_checkpoint_that_is_not_in_the_journal_yet_is_waited_for(tmp_path: Path) -> None:
    retention = Retention(run_of(tmp_path, [], keep_top=1))
    write(tmp_path, 0)
    early = trial(0, TrialState.COMPLETE, 0.5, "run-2/0000/checkpoint_000001", "epochs")
    retention.apply(run_of(tmp_path, [early]))
    assert len(left(tmp_path, 0)) == 6
    retention.apply(run_of(tmp_path, [trial(0, TrialState.COMPLETE, 0.5, end_reason="epochs")]))
    assert left(tmp_path, 0) == ["run-2/0000/checkpoint_000002/best_model.pth"]


def test_a_hundred_stopped_trials_keep_only_the_best(tmp_path: Path) -> None:
    trials = [trial(number, TrialState.PRUNED, score=(number * 37 % 100) / 100) for number in range(100)]
    for item in trials:
        write(tmp_path, item.number)
    run = run_of(tmp_path, trials)
    Retention(run).apply(run)
    kept = {path.parent.parent.name for path in (tmp_path / "ray").glob("*/*/*/*.pth")}
    assert kept == {f"{item.number:04d}" for item in sorted(trials, key=lambda t: -(t.score or 0))[:5]}
    assert len(list((tmp_path / "ray").glob("*/*/*/*.pth"))) == 5


def test_what_a_process_wrote_that_was_given_up_keeps_nothing_on_disk(tmp_path: Path) -> None:
    """A running trial keeps its last two in number, an ended one its last, whatever a lost process has written too."""
    home = tmp_path / "ray" / "run-2" / "0000"
    names = ["0_aa", "1_aa", "2_aa", "2_bb", "3_bb", "3_cc"]
    for name in names:
        (home / f"checkpoint_00000{name}").mkdir(parents=True)
        (home / f"checkpoint_00000{name}" / "best_model.pth").touch()
    config = run_of(tmp_path, []).config.with_record(storage=f"file://{tmp_path}/ray")
    last = "run-2/0000/checkpoint_000003_bb"
    for state, kept in ((TrialState.RUNNING, names[2:]), (TrialState.COMPLETE, ["3_bb"])):
        run = Run(RunDir(tmp_path), config, [trial(0, state, 0.5, last)])
        Retention(run).apply(run)
        assert left(tmp_path, 0) == [f"run-2/0000/checkpoint_00000{name}/best_model.pth" for name in kept]


def test_a_trial_without_a_checkpoint_is_skipped(tmp_path: Path) -> None:
    infeasible = trial(0, TrialState.COMPLETE, 0.0, None, "oom")
    run = run_of(tmp_path, [infeasible])
    Retention(run).apply(run)


def test_space_is_forecast_for_running_and_ended_trials(tmp_path: Path) -> None:
    """31,196,675 parameters of 12 bytes are 357 MiB; 8 running trials have 4 checkpoints each."""
    study = run_of(tmp_path, []).config
    line = check_disk_space(study, "s3://bucket/sweep", slots=8)
    assert line == "checkpoints: at most 65 of 357.0 MiB, 22.7 GiB in all, at s3://bucket/sweep"
    assert "at most 37 of" in check_disk_space(study, "s3://bucket/sweep", slots=1)


def test_a_run_that_cannot_fit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage._replace(free=int(22.6 * 2**30)))
    with pytest.raises(InputError, match=rf"22.7 GiB in all; {tmp_path} has 22.6 GiB free: make room"):
        check_disk_space(run_of(tmp_path, []).config, str(tmp_path / "run" / "ray"), slots=8)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage._replace(free=23 * 2**30))
    assert "23.0 GiB are free" in check_disk_space(run_of(tmp_path, []).config, str(tmp_path / "run" / "ray"), slots=8)


def test_on_a_uri_a_running_trial_keeps_what_the_snapshot_names_and_all_newer_ones(tmp_path: Path) -> None:
    """Ray deletes none of them there; of those before the one that is known, one stays."""
    run = run_of(tmp_path, [])
    study = run.config.with_record(storage=f"file://{tmp_path}/ray")
    retention = Retention(Run(RunDir(tmp_path), study, []))
    for index in range(6):
        home = tmp_path / "ray" / "run-2" / "0000" / f"checkpoint_{index:06d}"
        home.mkdir(parents=True)
        (home / "latest.pth").touch()
    for state, known, kept in (
        (TrialState.RUNNING, 2, [1, 2, 3, 4, 5]),
        (TrialState.RUNNING, 4, [3, 4, 5]),
        (TrialState.FAIL, 5, [4, 5]),
    ):
        retention.apply(Run(RunDir(tmp_path), study, [trial(0, state, 0.5, f"run-2/0000/checkpoint_{known:06d}")]))
        assert left(tmp_path, 0) == [f"run-2/0000/checkpoint_{index:06d}/latest.pth" for index in kept]
