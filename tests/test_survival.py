"""What befalls a whole sweep: signals, a lost node, a full disk. Real processes, driven as a user does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from faults import small_sweep
from helpers import clean_environment, rows, start, voxtune, wait_for
from optuna.trial import TrialState

from trainable.core.signals import END_SIGNALS
from tune.analysis.json_output.status import StatusOutput, status_output
from tune.driver.scheduling.storage_watch import StorageWatch
from tune.driver.scheduling.sweep_stopper import SignalKeeper, SweepStopper
from tune.run.results import Run, read_run
from tune.run.run_dir import RunDir
from tune.run.verify import verify
from tune.search.journal import read_trials
from tune.spec.sweep_file import dump

HANG = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from faults import faulty
from trainable.core.logger import init_logger
from tune.spec.sweep_file import load_sweep_config
from tune.driver.sweep import launch
init_logger()
launch(load_sweep_config(Path({space!r})), Path({run!r}), fit=faulty({{0: "hang", 1: "hang"}}))
"""


@pytest.fixture
def space(tmp_path: Path, phantoms, prepared) -> Path:
    """Six trials of 60 short epochs."""
    path = tmp_path / "space.yaml"
    path.write_text(dump(small_sweep(prepared, phantoms, study={"trials": 6}, train={"epochs": 60})))
    return path


def launch_words(space: Path, data: Path, run: Path) -> list[object]:
    return ["-m", "tune", "launch", space, "--data", data, "--out", run, "--no_report"]


def epochs_of(run: Path, number: int) -> int:
    return len(rows(run / "trials" / f"{number:04d}"))


def nothing_lost(run: Path) -> bool:
    return not any(verify(read_run(run)).values())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "whole_group"),
    [
        (signal.SIGTERM, False),
        (signal.SIGTERM, True),
        (signal.SIGINT, False),
        (signal.SIGINT, True),
        (signal.SIGUSR1, False),
        (signal.SIGHUP, True),
    ],
)
def test_a_signal_ends_a_sweep_within_30_s_and_it_can_be_resumed(space, phantoms, tmp_path, number, whole_group):
    """SIGTERM to the whole group, as a batch system or `timeout` sends it, reaches Ray's processes too; test_sweep.py
    sends it in each run of the tests.

    SIGUSR1 is what Slurm sends when a job's time is nearly over.
    """
    run = tmp_path / "run"
    process = start(*launch_words(space, phantoms, run))
    wait_for(process, lambda: epochs_of(run, 0) > 2)
    sent = time.monotonic()
    (os.killpg if whole_group else os.kill)(process.pid, number)
    output, _ = process.communicate(timeout=60)
    assert time.monotonic() - sent < 30
    assert process.returncode == 128 + number, output
    assert f"stopped by {number.name}; go on with: voxtune resume {run}" in output
    assert "Traceback" not in output
    assert nothing_lost(run)
    assert TrialState.RUNNING in [trial.state for trial in read_trials(run)]


@pytest.mark.slow
def test_a_sweep_goes_on_without_a_reader_of_its_output(space, phantoms, tmp_path):
    """As after `launch ... | head -1`."""
    run, errors = tmp_path / "run", tmp_path / "errors"
    words = [*launch_words(space, phantoms, run), "--trials", "1", "--set", "train.epochs=2"]
    with errors.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, *map(str, words)], stdout=subprocess.PIPE, stderr=file, env=clean_environment()
        )
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(timeout=120) == 0, errors.read_text()
    note = f"standard output has no reader any more (Broken pipe); the sweep goes on, see: voxtune status {run}"
    assert errors.read_text().count(note) == 1
    assert [trial.state for trial in read_trials(run)] == [TrialState.COMPLETE]


@pytest.mark.slow
def test_a_signal_does_not_wait_for_trials_that_hang(space, tmp_path):
    run = tmp_path / "run"
    process = start("-c", HANG.format(tests=str(Path(__file__).parent / "drills"), space=str(space), run=str(run)))
    wait_for(process, lambda: epochs_of(run, 0) == 1)
    sent = time.monotonic()
    os.kill(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert time.monotonic() - sent < 30
    assert process.returncode == 130, output
    assert f"voxtune resume {run}" in output


@pytest.mark.slow
def test_the_trials_of_a_lost_node_move_and_go_on(space, phantoms, tmp_path, monkeypatch):
    """A head without cores and two nodes of one core each; the raylet of the second is killed."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        cluster.add_node(num_cpus=1)
        lost = cluster.add_node(num_cpus=1)
        run = tmp_path / "run"
        words = [*launch_words(space, phantoms, run), "--address", cluster.address, "--trials", "3"]
        process = start(*words, RAY_AUTH_MODE="disabled")
        wait_for(process, lambda: min(epochs_of(run, 0), epochs_of(run, 1)) > 2)
        cluster.remove_node(lost, allow_graceful=False)
        output, _ = process.communicate(timeout=240)
    finally:
        cluster.shutdown()
    assert process.returncode == 0, output
    trials = read_trials(run)
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 3
    assert [list(trial.intermediate_values) for trial in trials] == [list(range(1, 61))] * 3
    logs = [(run / "trials" / f"{number:04d}" / "stdout.log").read_text() for number in range(2)]
    assert sum("goes on after epoch" in log for log in logs) == 1
    assert nothing_lost(run)


@pytest.mark.slow
def test_a_folder_that_is_moved_ends_its_sweep_with_a_hint_and_goes_on_at_its_new_place(space, phantoms, tmp_path):
    run = tmp_path / "run"
    process = start(*launch_words(space, phantoms, run), "--trials", "1")
    wait_for(process, lambda: epochs_of(run, 0) > 2)
    run.rename(tmp_path / "moved")
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 2, output
    assert f"{run} was moved or deleted while the sweep ran; if it was moved, go on with `voxtune resume NEW" in output
    resumed = start("-m", "tune", "resume", tmp_path / "moved")
    assert resumed.communicate(timeout=240) is not None
    assert resumed.returncode == 0
    assert nothing_lost(tmp_path / "moved")


@pytest.mark.slow
def test_paths_of_any_script_in_a_locale_of_ascii(space, phantoms, tmp_path):
    data, run = tmp_path / "脑🧠 data", tmp_path / "🧠"
    data.symlink_to(phantoms)
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    words = [*launch_words(space, data, run), "--trials", "1", "--set", "train.epochs=1"]
    for step in (words, ["-m", "tune", "resume", run, "--trials", "2"]):
        process = start(*step, **locale)
        output, _ = process.communicate(timeout=240)
        assert process.returncode == 0, output
    assert [trial.state for trial in read_trials(run)] == [TrialState.COMPLETE] * 2


HOLD = """
import sys, time
from pathlib import Path
import ray
from ray.util.placement_group import placement_group, remove_placement_group
ray.init(address=sys.argv[1], log_to_driver=False)
held = [placement_group([{"CPU": 1}]) for _ in range(2)]
ray.get([group.ready() for group in held])
print("held", flush=True)
while not Path(sys.argv[2]).exists():
    time.sleep(0.1)
remove_placement_group(held.pop())
time.sleep(600)
"""


@pytest.mark.slow
def test_a_sweep_says_what_others_hold_until_they_end(space, phantoms, tmp_path, monkeypatch):
    """First others hold all cores, then one of two, so that a trial runs while another one waits."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    from ray.cluster_utils import Cluster

    cluster, run = Cluster(initialize_head=True, head_node_args={"num_cpus": 2}), tmp_path / "run"
    words = [*launch_words(space, phantoms, run), "--trials", "2", "--set", "train.epochs=600"]

    def status() -> StatusOutput:
        return status_output(read_run(run))

    def counts_are(**counts: int) -> bool:
        return (run / "study.yaml").exists() and status().counts == counts

    try:
        other = start("-c", HOLD, cluster.address, tmp_path / "release", RAY_AUTH_MODE="disabled")
        assert other.stdout is not None
        while other.stdout.readline() != "held\n":
            assert other.poll() is None
        process = start(*words, "--address", cluster.address, RAY_AUTH_MODE="disabled")
        wait_for(process, lambda: counts_are(waiting=2))
        holder = f"{Path(sys.executable).name} (process {other.pid} on {cluster.address.split(':')[0]})"
        all_held = f"2 trials wait for 1 CPU each: 2 of 2 CPU are taken by {holder}: 2 CPU"
        assert status().waits_for == all_held
        assert f"\n{all_held}\n" in voxtune("status", run, COLUMNS="200").stdout
        (tmp_path / "release").touch()
        wait_for(process, lambda: counts_are(running=1, waiting=1))
        half_held = (
            f"1 trial waits for 1 CPU: 2 of 2 CPU are taken by {holder}: 1 CPU; tune launch (this process): 1 CPU"
        )
        wait_for(process, lambda: status().waits_for == half_held)
        other.kill()
        other.wait()
        wait_for(process, lambda: counts_are(running=2))
        wait_for(process, lambda: status().waits_for == "")
        process.terminate()
        output, _ = process.communicate(timeout=120)
    finally:
        cluster.shutdown()
    assert output.count(all_held) == output.count(half_held) == output.count("no trial waits any more; it took ") == 1
    assert process.returncode == 128 + signal.SIGTERM, output
    assert nothing_lost(run)


@pytest.mark.slow
def test_a_full_disk_ends_a_sweep_with_the_cause_and_it_goes_on_after_room_is_made(space, phantoms, small_disk):
    run, filler = small_disk / "run", small_disk / "filler"
    process = start(*launch_words(space, phantoms, run), "--trials", "3")
    wait_for(process, lambda: epochs_of(run, 0) > 2)
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1, output
    assert "No space left on device" in output
    assert f"go on with: voxtune resume {run}" in output
    assert "Traceback" not in output
    filler.unlink()
    assert nothing_lost(run)
    resumed = start("-m", "tune", "resume", run)
    output, _ = resumed.communicate(timeout=240)
    assert resumed.returncode == 0, output
    trials = read_trials(run)
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 3
    assert [list(trial.intermediate_values) for trial in trials] == [list(range(1, 61))] * 3
    assert nothing_lost(run)


def test_a_second_sigterm_changes_nothing(tmp_path: Path, prepared, phantoms):
    """As Ray's processes may send one when they end; its own handler would then end the driver with exit code 1."""
    before = {number: signal.getsignal(number) for number in END_SIGNALS}
    ending = SweepStopper(Run(RunDir(tmp_path), small_sweep(prepared, phantoms), []), StorageWatch(""))
    try:
        with ending.handle_signals():
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
            assert ending.stop_all()
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(SystemExit) as caught:
            ending.exit(Run(RunDir(tmp_path), ending.config, []))
    finally:
        ending.finished.set()
        for number, handler in before.items():
            signal.signal(number, handler)
    assert caught.value.code == 143


def test_a_signal_that_is_ignored_stays_ignored_and_rays_handler_gives_way(tmp_path: Path, prepared, phantoms):
    """nohup ignores SIGHUP; Ray takes SIGUSR1 when it starts, and would then end the sweep with exit code 0."""
    ending = SweepStopper(Run(RunDir(tmp_path), small_sweep(prepared, phantoms), []), StorageWatch(""))
    before = {number: signal.getsignal(number) for number in END_SIGNALS}
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with ending.handle_signals():
            signal.signal(signal.SIGUSR1, signal.SIG_DFL)
            SignalKeeper(ending).setup()
            os.kill(os.getpid(), signal.SIGHUP)
            assert not ending.stop_all()
            os.kill(os.getpid(), signal.SIGUSR1)
            assert ending.reason() == "SIGUSR1"
    finally:
        ending.finished.set()
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_sweep_that_ray_ends_by_itself_is_not_taken_for_finished(tmp_path: Path, prepared, phantoms, capsys):
    run = Run(RunDir(tmp_path), small_sweep(prepared, phantoms), [])
    with pytest.raises(SystemExit) as caught:
        SweepStopper(run, StorageWatch("")).exit(run)
    assert caught.value.code == 1
    counts, reason = capsys.readouterr().out.splitlines()
    assert counts == f"{tmp_path.name}: 0 of {run.trials_left} trials started; no score yet"
    assert reason == f"stopped by Ray, before the last trial; go on with: voxtune resume {tmp_path}"


def test_the_last_report_of_a_trial_is_counted_once(tmp_path: Path, prepared, phantoms):
    """Ray repeats it when the trial is done."""
    ending = SweepStopper(
        Run(RunDir(tmp_path), small_sweep(prepared, phantoms, resources={"gpu": 2}), []), StorageWatch("")
    )
    last = {"time_this_iter_s": 3.0, "end_reason": "epochs", "best_score": 0.5}
    for result in ({**last, "end_reason": ""}, last, {**last, "done": True}):
        assert ending("trial", result) is False
    assert ending.gpu_seconds == 12
