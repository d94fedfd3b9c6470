"""Faults of trials in real sweeps on a real local Ray: what is reported, what is retried, what goes on."""

import contextlib
import re
import shutil
from types import SimpleNamespace

import pytest
from faults import change_label, delete_cache, faulty, happen, leaky, meddling, small_sweep
from helpers import notices_at
from optuna.trial import TrialState

from trainable.core.errors import InputError
from trainable.data.prepare import Data
from trainable.data.split import load_split
from tune.driver.processes import watchdog
from tune.driver.processes.trial_fit import fit_to_storage
from tune.driver.processes.watchdog import HangWatchdog
from tune.driver.sweep import launch, resume
from tune.run.events import EventKind, read_events
from tune.run.results import read_run
from tune.run.run_dir import RunDir
from tune.run.verify import verify
from tune.search.journal import read_trials

COMPLETE, PRUNED, FAIL, RUNNING = TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING


@pytest.mark.slow
def test_each_fault_is_reported_as_what_it_is_and_the_sweep_goes_on(cluster, phantoms, prepared, tmp_path):
    """In processes that run one trial after the other."""
    faults = {0: "out of memory", 1: "error", 2: "hang", 3: "not finite", 4: "error once", 5: "kill once", 6: "kill"}
    config = small_sweep(
        prepared, phantoms, study={"trials": 8}, resources={"gpu": 0, "cpu": 1, "max_failures": 1, "report_timeout": 6}
    )
    with notices_at("/hook/secret") as (url, notices):
        run = launch(config, tmp_path / "run", cluster=cluster, fit=faulty(faults), notify=url)
    trials = read_trials(run.folder)
    assert [t.state for t in trials] == [COMPLETE, FAIL, FAIL, PRUNED, COMPLETE, COMPLETE, FAIL, COMPLETE]
    assert [t.number for t in trials if t.constraints] == [0]
    assert trials[0].user_attrs["progress"]["end_reason"] == "oom"
    assert trials[0].value == 0
    assert run.best().number in (4, 5, 7)
    assert trials[3].user_attrs["progress"]["end_reason"] == "non_finite"
    folders = [run.folder / "trials" / f"{number:04d}" for number in range(8)]
    assert (folders[1] / "error.txt").read_text().count("RuntimeError: injected error") >= 2  # one retry
    assert trials[1].user_attrs["error"] == "RuntimeError: injected error"
    assert "resources.report_timeout" in trials[2].user_attrs["error"]
    assert re.search(r"Timeout \(0:00:05.*!\n(.*\n)*.* in happen\n", (folders[2] / "stdout.log").read_text())
    for number, lives in {1: 2, 2: 1, 4: 2, 5: 2, 6: 2}.items():
        assert (folders[number] / "stdout.log").read_text().count("goes on after epoch 1") == lives - 1, number
    assert list(trials[5].intermediate_values) == [1, 2, 3]
    events = read_events(run.dir.events)
    retried = {event.trial: event.text for event in events if event.kind == EventKind.TRIAL_RETRIED}
    assert set(retried) == {1, 4, 5, 6}
    assert retried[4] == "started again after RuntimeError: injected error"
    ended = {event.trial: event for event in events if event.kind == EventKind.TRIAL_ENDED}
    assert {number: event.status for number, event in ended.items()} == {t.number: t.status for t in run.trials}
    failed = run.trial(1)
    where = f"failed at epoch {failed.epoch}/3, val_dice_mean {failed.score:.4f}"
    assert ended[1].text == f"{where}: RuntimeError: injected error"
    assert ended[6].text.endswith(": The actor is dead because its worker process has died")
    assert ended[2].text.endswith("treated as hung")
    assert sorted(notice["text"] for notice in notices[:-1]) == [f"trial {number} has failed" for number in (1, 2, 6)]
    best = {"trial": run.best().number, "val_dice_mean": run.best().score, "epoch": run.best().best_epoch}
    assert notices[-1] | {"time": 0} == {
        "event": "sweep_ended", "run": "run", "text": "all 8 trials have ended", "best": best, "time": 0,
    }  # fmt: skip
    texts = [path.read_bytes() for path in run.folder.rglob("*") if path.is_file()]
    assert not any(b"secret" in text for text in texts)


@pytest.mark.slow
def test_epochs_without_validation_are_a_sign_of_life_and_a_clock_that_is_set_back_costs_nothing(
    cluster, phantoms, prepared, tmp_path
):
    """Only the last of 16 epochs of half a second is validated, and a trial without a report for 4 s has hung."""
    train = {"epochs": 16, "val_freq": 16}
    config = small_sweep(prepared, phantoms, study={"trials": 2}, resources={"report_timeout": 4}, train=train)
    run = launch(config, tmp_path / "run", cluster=cluster, fit=faulty({0: "slow", 1: "clock once"}))
    assert [trial.state for trial in read_trials(run.folder)] == [COMPLETE, COMPLETE]
    assert [list(trial.intermediate_values) for trial in read_trials(run.folder)] == [[16], [16]]
    assert (run.folder / "trials" / "0000" / "stdout.log").read_text().count("epoch ") == 16
    assert 7.5 < run.trial(0).seconds < 120
    assert 0 < run.trial(1).seconds < 120
    assert not any(verify(run).values())


def test_after_a_pause_of_its_own_the_driver_waits_anew(monkeypatch):
    """Ctrl-Z of the driver alone: its trials go on and wait with their reports."""
    now, hung = 100.0, []
    monkeypatch.setattr(watchdog.time, "monotonic", lambda: now)
    monkeypatch.setattr(HangWatchdog, "kill", lambda self, trial, actor, silent: hung.append((trial.trial_id, silent)))
    ray_trial = SimpleNamespace(trial_id="a", status="RUNNING", temporary_state=SimpleNamespace(ray_actor=object()))
    dog = HangWatchdog(None, 15)
    dog.on_trial_start(0, [ray_trial], ray_trial)
    for seconds in (1.1, 25, *[1.1] * 13):
        now += seconds
        dog.on_step_end(0, [ray_trial])
    assert hung == []
    now += 1.1
    dog.on_step_end(0, [ray_trial])
    assert hung == [("a", pytest.approx(15.4))]


@pytest.mark.slow
def test_a_frozen_process_is_ended_too(cluster, phantoms, prepared, tmp_path):
    """By SIGSTOP: none of its threads runs, and it cannot dump its stacks."""
    resources = {"gpu": 0, "cpu": 1, "max_failures": 1, "report_timeout": 6}
    config = small_sweep(prepared, phantoms, study={"trials": 2}, resources=resources)
    run = launch(config, tmp_path / "run", cluster=cluster, fit=faulty({0: "freeze"}))
    trials = read_trials(run.folder)
    assert [trial.state for trial in trials] == [FAIL, COMPLETE]
    assert "resources.report_timeout" in trials[0].user_attrs["error"]


@pytest.mark.slow
def test_a_full_disk_in_a_trial_ends_the_sweep_with_the_cause_and_resume_goes_on(
    cluster, phantoms, prepared, tmp_path, capsys
):
    config = small_sweep(prepared, phantoms, study={"trials": 3})
    with pytest.raises(SystemExit) as ended:
        launch(config, tmp_path / "run", cluster=cluster, fit=faulty({1: "disk full"}))
    assert ended.value.code == 1
    printed = capsys.readouterr().out
    assert "stopped by a full disk on" in printed
    assert f"[Errno 28] No space left on device: '/injected'; go on with: voxtune resume {tmp_path}/run" in printed
    assert read_trials(tmp_path / "run")[1].state == RUNNING
    run = resume(tmp_path / "run", cluster=cluster)
    assert [t.state for t in read_trials(run.folder)] == [COMPLETE] * 3
    assert "goes on after epoch 1" in (run.folder / "trials" / "0001" / "stdout.log").read_text()


@pytest.mark.slow
def test_a_trial_whose_checkpoints_a_power_cut_has_damaged_goes_on_from_an_older_one_or_begins_again(
    cluster, phantoms, prepared, tmp_path
):
    rungs = {"type": "asha", "grace_period": 1, "reduction_factor": 2}
    config = small_sweep(prepared, phantoms, study={"trials": 1}, early_stopping=rungs)
    folder = tmp_path / "run"

    def fit(config, data, on_epoch_end, on_progress):
        def after(result):
            on_epoch_end(result)
            if result.epoch == 2:
                happen("disk full")  # ends the sweep

        return fit_to_storage(config, data, after, on_progress)

    def known() -> tuple[object, object]:
        [trial] = read_trials(folder)
        return trial.intermediate_values, trial.user_attrs["rungs"]

    with pytest.raises(SystemExit):
        launch(config, folder, cluster=cluster, fit=fit)
    before, newest = known(), folder / "ray" / read_trials(folder)[0].user_attrs["progress"]["checkpoint"]
    for path in newest.glob("*.pth"):
        path.unlink()  # the older one has the same best_model.pth as a hard link
        path.write_bytes(b"")
    with pytest.raises(SystemExit):
        resume(folder, cluster=cluster, fit=fit)
    assert not any(verify(read_run(folder)).values())
    assert known() == before
    for path in folder.glob("ray/*/0000/*/*.pth"):
        path.write_bytes(b"")
    run = resume(folder, cluster=cluster)
    assert [run.trial(0).status, list(read_trials(folder)[0].intermediate_values)] == ["complete", [1, 2, 3]]
    assert not any(verify(run).values())
    texts = [event.text for event in read_events(run.dir.events) if event.kind == EventKind.TRIAL_WENT_BACK]
    assert texts[0].startswith(f"goes on after epoch 1, not after epoch 2: {newest}/")
    assert texts[1].startswith("begins again, not after epoch 2: ")
    log = run.dir.trial(0).stdout.read_text()
    assert [log.count(text) for text in ("goes on after epoch 1", "begins again", "epoch   2/3")] == [1, 1, 3]


@pytest.mark.slow
def test_a_damaged_file_of_a_trial_ends_the_sweep_with_its_name_and_fails_no_trial(
    cluster, phantoms, prepared, tmp_path, capsys
):
    config = small_sweep(prepared, phantoms, study={"trials": 3})
    damaged = RunDir(tmp_path / "run").trial(2).case_scores

    def damage(number: int, *_: object) -> None:
        if number != 2 and not damaged.exists():  # the first report: trial 2 begins when one of two has ended
            damaged.parent.mkdir(exist_ok=True)
            damaged.write_text("epoch,ca")

    with pytest.raises(SystemExit) as ended:
        launch(config, tmp_path / "run", cluster=cluster, on_report=damage)
    assert ended.value.code == 1
    assert f"stopped by {damaged}: line 1 is damaged" in capsys.readouterr().out
    assert [t.state for t in read_trials(tmp_path / "run")][2] == RUNNING


@pytest.mark.parametrize(
    ("meddle", "message"),
    [
        pytest.param(
            change_label,
            r"cases have changed since the (training|sweep) began: {val} \(label\); restore them",
            marks=pytest.mark.slow,
        ),
        pytest.param(delete_cache, r"Phantom_\d+: not a whole prepared case", marks=pytest.mark.slow),
    ],
)
def test_cases_that_change_or_vanish_end_the_sweep_without_a_score_of_them_and_resume_goes_on(
    cluster, phantoms, prepared, tmp_path, capsys, meddle, message
):
    cache = tmp_path / "cache"
    shutil.copytree(prepared.folder, cache)
    data = Data(cache, prepared.split)
    config = small_sweep(data, phantoms, study={"trials": 3})
    with pytest.raises(SystemExit) as ended:
        launch(config, tmp_path / "run", cluster=cluster, fit=meddling(meddle))
    assert ended.value.code == 1
    printed = capsys.readouterr().out
    assert "stopped by the cache on" in printed
    assert re.search(message.replace("{val}", load_split(tmp_path / "run" / "split.json").val[0]), printed)
    assert f"go on with: voxtune resume {tmp_path}/run" in printed
    trials = read_trials(tmp_path / "run")
    assert FAIL not in [trial.state for trial in trials]
    assert trials[1].state == RUNNING
    assert list(trials[1].intermediate_values) in ([1], [1, 2])  # epoch 2 may be validated while epoch 1 is reported
    run = resume(tmp_path / "run", cluster=cluster)  # which prepares the cases anew
    assert [trial.state for trial in read_trials(run.folder)] == [COMPLETE] * 3
    assert {trial.user_attrs["progress"]["data"] for trial in read_trials(run.folder)} == {run.config.record.data}


@pytest.mark.slow
def test_checkpoints_that_are_deleted_end_the_sweep_and_no_trial_fails(cluster, phantoms, prepared, tmp_path, capsys):
    run_dir = tmp_path / "run"

    def delete_checkpoints(number, report, decision):
        if number == 1 and report["epoch"] == 1:
            shutil.rmtree(run_dir / "ray")

    config = small_sweep(prepared, phantoms, study={"trials": 6})
    with pytest.raises(SystemExit) as ended:
        launch(config, run_dir, cluster=cluster, on_report=delete_checkpoints)
    assert ended.value.code == 1
    assert f"stopped by the loss of {run_dir / 'ray'}: the checkpoints in it were deleted" in capsys.readouterr().out
    states = [trial.state for trial in read_trials(run_dir)]
    assert RUNNING in states
    assert FAIL not in states
    with contextlib.suppress(InputError):  # the winner's checkpoint may be among those that are gone
        resume(run_dir, cluster=cluster)
    assert [trial.state for trial in read_trials(run_dir)] == [COMPLETE] * 6


@pytest.mark.slow
def test_fail_fast_ends_the_sweep_at_the_first_failed_trial(cluster, phantoms, prepared, tmp_path, capsys):
    resources = {"max_failures": 0, "fail_fast": True}
    with pytest.raises(SystemExit) as ended:
        launch(
            small_sweep(prepared, phantoms, study={"trials": 20}, resources=resources),
            tmp_path / "run",
            cluster=cluster,
            fit=faulty({0: "error"}),
        )
    assert ended.value.code == 1
    assert "stopped by fail_fast: trial 0 failed, see" in capsys.readouterr().out
    states = [trial.state for trial in read_trials(tmp_path / "run")]
    assert states[0] == FAIL
    assert len(states) < 20
    assert FAIL not in states[1:]


@pytest.mark.gpu
def test_a_real_out_of_memory_frees_its_memory_and_later_trials_equal_those_of_fresh_processes(
    cluster, phantoms, prepared, tmp_path
):
    sides = (16, 352, 16, 352, 16)
    params = tuple({"target_shape": str([side] * 3), "lr": 1e-3 + 1e-4 * k} for k, side in enumerate(sides))
    sections = {
        "study": {"trials": 5},
        "train": {"device": "cuda", "deterministic": True, "base_channels": 32, "batch_size": 4, "target_shape": None},
        "space": {"target_shape": {"choice": [[16] * 3, [352] * 3]}, "optimizer": None, "lr": {"uniform": [1e-5, 1.0]}},
    }
    values = []
    for reuse in (True, False):
        resources = {"gpu": 1, "cpu": 4, "reuse_processes": reuse}
        config = small_sweep(prepared, phantoms, **sections, resources=resources)
        run = launch(config, tmp_path / str(reuse), cluster=cluster, params=params, fit=faulty({}))
        trials = read_trials(run.folder)
        assert [trial.state for trial in trials] == [COMPLETE] * 5
        assert [trial.number for trial in trials if trial.constraints] == [1, 3]
        logs = [(run.folder / "trials" / f"{number:04d}" / "stdout.log").read_text() for number in range(5)]
        assert "out of GPU memory" in logs[1]
        assert not any("fresh process" in log for log in logs)
        values.append([trial.intermediate_values for trial in trials])
    assert values[0] == values[1]


@pytest.mark.gpu
def test_gpu_memory_that_a_trial_leaves_occupied_gives_the_next_one_a_fresh_process(
    cluster, phantoms, prepared, tmp_path
):
    sections = {"study": {"trials": 3}, "train": {"device": "cuda"}}
    config = small_sweep(prepared, phantoms, **sections, resources={"gpu": 1, "cpu": 4, "max_failures": 0})
    run = launch(config, tmp_path / "run", cluster=cluster, fit=leaky)
    assert [trial.state for trial in read_trials(run.folder)] == [COMPLETE] * 3
    logs = [(run.folder / "trials" / f"{number:04d}" / "stdout.log").read_text() for number in range(3)]
    assert "MiB of GPU memory were left by the trial before" in logs[1]
    assert "fresh process" not in logs[0] + logs[2]
