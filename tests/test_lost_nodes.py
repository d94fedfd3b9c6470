"""Sweeps on real Ray clusters whose nodes are killed, or added, while trials run."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from faults import small_sweep
from helpers import rows, start, voxtune, wait_for
from optuna.trial import TrialState
from test_trainings import training
from test_trial_ranks import parent_of

from tune.driver.trainings import run_trainings
from tune.run.events import EventKind, read_events
from tune.run.results import read_run
from tune.run.verify import verify
from tune.search.journal import read_trials
from tune.spec.sections import Resources
from tune.spec.sweep_file import dump


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A cluster of a head without cores, which processes of this machine can join as nodes."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    yield cluster
    cluster.shutdown()


def launch_on(cluster: Any, folder: Path, data: Path, prepared: Any, trials: int, epochs: int) -> Any:
    """Launch a sweep on a cluster that restarts no trial that fails, into folder/run; return its process."""
    config = small_sweep(
        prepared, data, study={"trials": trials}, train={"epochs": epochs}, resources={"max_failures": 0},
        early_stopping={"type": "none"},
    )  # fmt: skip
    (folder / "space.yaml").write_text(dump(config))
    words = ["-m", "tune", "launch", folder / "space.yaml", "--data", data, "--out", folder / "run", "--no_report"]
    return start(*words, "--address", cluster.address, RAY_AUTH_MODE="disabled")


def epochs_of(run: Path, number: int) -> int:
    return len(rows(run / "trials" / f"{number:04d}"))


@pytest.mark.slow
def test_a_trial_that_its_node_takes_along_has_not_failed_and_goes_on_elsewhere(cluster, phantoms, prepared, tmp_path):
    run, lost = tmp_path / "run", cluster.add_node(num_cpus=1)
    process = launch_on(cluster, tmp_path, phantoms, prepared, trials=1, epochs=60)
    wait_for(process, lambda: epochs_of(run, 0) > 2)
    cluster.add_node(num_cpus=1)
    cluster.remove_node(lost, allow_graceful=False)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    assert [trial.state for trial in read_trials(run)] == [TrialState.COMPLETE]
    texts = [event.text for event in read_events(run / "events.jsonl") if event.kind == EventKind.TRIAL_RETRIED]
    assert len(texts) == 1
    assert "started again after the loss of its node" in texts[0]
    assert "goes on after epoch" in (run / "trials" / "0000" / "stdout.log").read_text()
    assert not any(verify(read_run(run)).values())
    assert "the loss of its node" in voxtune("show", run, 0).stdout


@pytest.mark.slow
def test_a_sweep_goes_on_with_the_nodes_that_are_left(cluster, phantoms, prepared, tmp_path):
    """The trial of the lost node waits for a process, and the one that is free has the only slot that is left."""
    run = tmp_path / "run"
    cluster.add_node(num_cpus=1)
    lost = cluster.add_node(num_cpus=1)
    process = launch_on(cluster, tmp_path, phantoms, prepared, trials=6, epochs=12)
    wait_for(process, lambda: epochs_of(run, 0) > 2 and epochs_of(run, 1) > 2)
    cluster.remove_node(lost, allow_graceful=False)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    assert [trial.state for trial in read_trials(run)] == [TrialState.COMPLETE] * 6
    assert not any(verify(read_run(run)).values())


@pytest.mark.slow
def test_the_loss_of_a_node_is_no_failure_of_its_training(cluster, prepared, tmp_path, monkeypatch, capfd):
    """Two trainings that may not fail, on a node each, one of which is killed before an epoch of its training ends."""
    monkeypatch.setenv("RAY_worker_niceness", "0")
    long = [training(tmp_path, prepared, name, seed=seed, patches_per_epoch=400) for seed, name in enumerate("ab")]
    nodes = [cluster.add_node(num_cpus=1) for _ in long]

    def lose() -> None:
        while not (tmp_path / "b" / "training_config.json").exists():
            time.sleep(0.02)
        trains = int((tmp_path / "b" / ".lock").read_text().split()[1])
        parents = {parent_of(trains), parent_of(parent_of(trains))}
        [lost] = [node for node in nodes if node.all_processes["raylet"][0].process.pid in parents]
        cluster.remove_node(lost, allow_graceful=False)

    thread = threading.Thread(target=lose, daemon=True)
    thread.start()
    resources = Resources(gpu=0, cpu=1, max_failures=0)
    outcomes = run_trainings(lambda _: long, tmp_path, resources, address=cluster.address, resume_command="again")
    thread.join(10)
    assert {name: outcome.error for name, outcome in outcomes.items()} == {"a": "", "b": ""}
    assert [len(rows(item.dir.path)) for item in long] == [2, 2]
    assert re.search(r"b: the loss of its node \S+; it goes on from its last checkpoint", "".join(capfd.readouterr()))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_driver_of_a_cluster_that_has_died(cluster, phantoms, prepared, tmp_path, number):
    """Its main thread then waits inside Ray for a minute, where Python calls no handler."""
    run = tmp_path / "run"
    cluster.add_node(num_cpus=1)
    process = launch_on(cluster, tmp_path, phantoms, prepared, trials=2, epochs=60)
    wait_for(process, lambda: epochs_of(run, 0) > 2)
    for node in (*cluster.worker_nodes, cluster.head_node):
        for processes in node.all_processes.values():
            for info in processes:
                info.process.kill()
    time.sleep(3)
    sent = time.monotonic()
    os.kill(process.pid, number)
    output, _ = process.communicate(timeout=100)
    assert time.monotonic() - sent < 12
    assert process.returncode == 128 + number, output
    assert f"voxtune resume {run}" in output
    resumed = voxtune("resume", run)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert [trial.state for trial in read_trials(run)] == [TrialState.COMPLETE] * 2
    assert not any(verify(read_run(run)).values())


# Launches a sweep whose trials train nothing and take a moment, and note which node they run on.
SHORT = """
import sys
import time
from functools import partial
from pathlib import Path

import ray
from common import scored_epoch
from ray import cloudpickle

import common
from tune.driver.sweep import launch
from tune.spec.sweep_file import load_sweep_config
from trainable.training.epoch_result import EndReason

cloudpickle.register_pickle_by_value(common)


def fit(config, data, on_epoch_end, on_progress, *, nodes):
    with nodes.open("a") as file:
        file.write(ray.get_runtime_context().get_node_id() + "\\n")
    time.sleep(0.3)
    folder = config.output_dir / "checkpoints"
    folder.mkdir(parents=True)
    result = scored_epoch(1, 0.5, folder, best=(0.5, 1), end_reason=EndReason.EPOCHS)
    on_epoch_end(result)
    return result


space, run, address = sys.argv[1:]
config = load_sweep_config(Path(space))
launch(config, Path(run), address=address, fit=partial(fit, nodes=Path(run).with_name("nodes")))
"""


@pytest.mark.slow
def test_a_new_node_gets_trials_that_are_shorter_than_the_start_of_a_process(cluster, phantoms, prepared, tmp_path):
    nodes = tmp_path / "nodes"
    cluster.add_node(num_cpus=1)
    config = small_sweep(prepared, phantoms, study={"trials": 2000}, train={"epochs": 1})
    (tmp_path / "space.yaml").write_text(dump(config))
    path = os.pathsep.join([str(Path(__file__).parents[1] / "benchmarks"), os.environ.get("PYTHONPATH", "")])
    process = start(
        "-c", SHORT, tmp_path / "space.yaml", tmp_path / "run", cluster.address,
        RAY_AUTH_MODE="disabled", PYTHONPATH=path,
    )  # fmt: skip
    wait_for(process, lambda: nodes.exists() and nodes.read_text().count("\n") > 3)
    cluster.add_node(num_cpus=1)
    try:
        wait_for(process, lambda: len(set(nodes.read_text().split())) == 2, seconds=60)
    finally:
        os.kill(process.pid, signal.SIGTERM)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 143, output
