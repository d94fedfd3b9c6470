"""Trials on several nodes: real sweeps on clusters of raylets on this machine, on the CPU with gloo."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from helpers import SPACE, rows, start, voxtune, wait_for
from ray_nodes import OPEN, cluster_of
from test_trial_ranks import TWO_GPUS, parent_of

from trainable.core.errors import InputError
from trainable.data.prepare import Data
from trainable.training.checkpoint import load_checkpoint
from tune.driver.cluster.connection import Cluster, Slots, groups_on_nodes
from tune.driver.cluster.wait_watch import subject
from tune.driver.processes.network_interface import interface_of
from tune.driver.processes.node_ranks import reason_of
from tune.driver.processes.node_trouble import NodeTroubleError
from tune.run.events import EventKind, read_events
from tune.run.results import read_run
from tune.run.run_dir import RunDir
from tune.run.verify import verify
from tune.search.trial_progress import Progress
from tune.spec.sweep_config import make_sweep_config, undivided_steps

TWO_NODES = SPACE.replace("gpu: 0", "gpu: 0, nodes: 2")


@pytest.fixture
def two_nodes() -> Iterator[Any]:
    """A cluster with two nodes of one core each."""
    with cluster_of(1, 1) as cluster:
        yield cluster


def pids_on_other_nodes(folder: Path) -> list[int]:
    """The ids of the processes of a run, or of its confirmation, on other nodes than the first one of a training."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            started_by_actor = re.search(r"rank_link.*\0\S+ \d+ \d+\0", (process / "cmdline").read_text())
            links = {os.readlink(link) for link in (process / "fd").iterdir()} if started_by_actor else set()
        except (OSError, UnicodeDecodeError):
            continue
        if any(link.startswith(f"{folder}/") and link.endswith("/.workers") for link in links):
            found.append(int(process.name))
    return found


@pytest.mark.slow
def test_trials_on_two_nodes_equal_those_on_two_gpus_of_one_node(
    two_nodes: Any, prepared: Data, phantoms: Path, tmp_path: Path
) -> None:
    space, one, two = tmp_path / "space.yaml", RunDir(tmp_path / "one"), RunDir(tmp_path / "two")
    space.write_text(TWO_NODES)
    words = ["launch", space, "--data", phantoms, "--set", f"train.cache_dir={prepared.folder}"]
    there = voxtune(*words, "--out", two.path, "--address", two_nodes.address, **OPEN)
    assert there.returncode == 0, there.stdout + there.stderr
    assert "1 CPU, 0 GPU on each of 2 nodes per trial" in there.stdout
    on_one_node = ["--set", "resources.nodes=1", "--set", "resources.gpu=2"]
    here = voxtune(*words, "--out", one.path, *on_one_node, **TWO_GPUS)
    assert here.returncode == 0, here.stdout + here.stderr

    runs = [read_run(run.path) for run in (one, two)]
    for a, b in zip(*(run.trials for run in runs), strict=True):
        assert (a.number, a.status, a.epoch) == (b.number, b.status, b.epoch)
        assert runs[0].recipe(a).lr == runs[1].recipe(b).lr
        assert a.score == pytest.approx(b.score, abs=1e-6)
    assert {trial.status for trial in runs[1].trials} == {"complete", "stopped early"}
    weights = [load_checkpoint(run.best_model)["network"] for run in (one, two)]
    torch.testing.assert_close(*weights, rtol=1e-5, atol=1e-7)
    assert not any(verify(runs[1]).values())
    events = read_events(two.events)
    assert all(re.search(r" and on [\d.]+$", event.text) for event in events if event.kind == EventKind.TRIAL_STARTED)
    begun = [event.time for event in events if event.kind == EventKind.TRIAL_STARTED]
    for stop in [event.time for event in events if event.kind == EventKind.TRIAL_STOPPED][:-1]:
        assert min(time for time in begun if time > stop) < stop + 5


@pytest.mark.slow
def test_a_confirmation_takes_the_nodes_of_a_trial_and_goes_on_after_the_loss_of_one(
    two_nodes: Any, prepared: Data, phantoms: Path, tmp_path: Path
) -> None:
    space, run = tmp_path / "space.yaml", RunDir(tmp_path / "run")
    space.write_text(TWO_NODES.replace("epochs: 4", "epochs: 1"))
    words = ["launch", space, "--data", phantoms, "--out", run.path, "--set", f"train.cache_dir={prepared.folder}"]
    done = voxtune(*words, "--trials", 2, "--address", two_nodes.address, **OPEN)
    assert done.returncode == 0, done.stdout + done.stderr
    words = ["confirm", run.path, "--top", 1, "--seeds", 1, "--epochs", 20, "--address", two_nodes.address]
    process = start("-m", "tune", *words, **OPEN)
    wait_for(process, lambda: any(len(rows(path.parent)) > 1 for path in run.confirm.path.glob("**/metrics.csv")))
    [pid] = pids_on_other_nodes(run.confirm.path)
    two_nodes.remove_node(node_of(pid, two_nodes), allow_graceful=False)
    two_nodes.add_node(num_cpus=1)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    lost = "the loss of a node, with process 1 of the 2 that train together on"
    assert output.count(lost) == 1, output
    logs = [path.read_text() for path in run.confirm.path.glob("trainings/**/stdout.log")]
    assert len(logs) == 2
    assert all("device: 2 x cpu" in text for text in logs)
    assert not any(verify(read_run(run.path)).values())


@pytest.mark.slow
def test_a_killed_process_costs_a_restart_and_lost_nodes_none(
    two_nodes: Any, prepared: Data, phantoms: Path, tmp_path: Path
) -> None:
    space, run = tmp_path / "space.yaml", RunDir(tmp_path / "run")
    space.write_text(TWO_NODES.replace("epochs: 4", "epochs: 16").replace("cpu: 1", "cpu: 1, max_failures: 1"))
    words = ["launch", space, "--data", phantoms, "--out", run.path, "--set", f"train.cache_dir={prepared.folder}"]
    words += ["--trials", 1, "--no_report", "--address", two_nodes.address]
    process = start("-m", "tune", *words, **OPEN)
    trial = run.trial(0).path

    def lose(*, first: bool) -> None:
        """Kill a node of the trial, the first or the other one; another node joins once that has cost a restart."""
        before = retries(run)
        [pid] = pids_on_other_nodes(run.path)
        other = node_of(pid, two_nodes)
        node = next(node for node in two_nodes.worker_nodes if (node is not other) == first)
        two_nodes.remove_node(node, allow_graceful=False)
        wait_for(process, lambda: len(retries(run)) > len(before))
        two_nodes.add_node(num_cpus=1)

    wait_for(process, lambda: len(rows(trial)) >= 2)
    [pid] = pids_on_other_nodes(run.path)
    os.kill(pid, signal.SIGKILL)
    wait_for(process, lambda: len(rows(trial)) >= 4)
    lose(first=False)
    wait_for(process, lambda: len(rows(trial)) >= 6)
    lose(first=True)
    wait_for(process, lambda: len(rows(trial)) >= 8)
    process.terminate()
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, output
    wait_until_gone = time.monotonic() + 10
    while pids_on_other_nodes(run.path):
        assert time.monotonic() < wait_until_gone

    done = voxtune("resume", run.path, "--address", two_nodes.address, **OPEN)
    assert done.returncode == 0, done.stdout + done.stderr
    found = read_run(run.path)
    assert [trial.status for trial in found.trials] == ["complete"]
    assert [row["epoch"] for row in rows(trial)] == [str(epoch) for epoch in range(1, 17)]
    assert not any(verify(found).values())
    killed, lost, lost_with_process = retries(run)
    assert "process 1 of the 2 that train together was killed by SIGKILL on " in killed
    assert "the loss of a node, with process 1 of the 2 that train together on " in lost
    assert "the loss of its node " in lost_with_process
    assert not pids_on_other_nodes(run.path)


def retries(run: RunDir) -> list[str]:
    """What is said of each restart of a trial."""
    return [event.text for event in read_events(run.events) if event.kind == EventKind.TRIAL_RETRIED]


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs a GPU for each of two nodes")
def test_trials_and_a_retraining_on_the_gpus_of_two_nodes(prepared: Data, phantoms: Path, tmp_path: Path) -> None:
    """Two raylets with half of this machine's GPUs each; NCCL between them."""
    each = torch.cuda.device_count() // 2
    space, one, two = tmp_path / "space.yaml", RunDir(tmp_path / "one"), RunDir(tmp_path / "two")
    space.write_text(TWO_NODES.replace("gpu: 0", f"gpu: {each}").replace("device: cpu", f"batch_size: {2 * each}"))
    words = ["launch", space, "--data", phantoms, "--set", f"train.cache_dir={prepared.folder}"]
    on_one_node = ["--set", "resources.nodes=1", "--set", f"resources.gpu={2 * each}"]
    here = voxtune(*words, "--out", one.path, *on_one_node)
    assert here.returncode == 0, here.stdout + here.stderr
    with cluster_of() as cluster:
        for first in (0, each):
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(first, first + each))))
                cluster.add_node(num_cpus=4, num_gpus=each)
        there = voxtune(*words, "--out", two.path, "--address", cluster.address, **OPEN)
        assert there.returncode == 0, there.stdout + there.stderr
        words = ["retrain", two.path, "--gpus", each, "--nodes", 2, "--address", cluster.address, "--name", "again"]
        again = voxtune(*words, **OPEN)
        assert again.returncode == 0, again.stdout + again.stderr
        assert f"device: {2 * each} x " in again.stdout
    found = read_run(two.path)
    assert not any(verify(found).values())
    for a, b in zip(rows(one.trial(0).path), rows(two.trial(0).path), strict=True):
        assert float(a["avg_total_loss"]) == pytest.approx(float(b["avg_total_loss"]), rel=0.01)


def node_of(pid: int, cluster: Any) -> Any:
    """The node of a cluster that a process runs on."""
    raylets = {node.all_processes["raylet"][0].process.pid: node for node in cluster.worker_nodes}
    while pid not in raylets:
        pid = parent_of(pid)
    return raylets[pid]


@pytest.mark.parametrize(
    ("resources", "refused"),
    [
        ({"nodes": 2}, ""),
        ({"nodes": 2, "gpu": 0}, ""),
        ({"nodes": 2, "gpu": 2}, ""),
        ({"nodes": 1, "gpu": 0.5}, ""),
        ({"nodes": 2, "gpu": 0.5}, "resources.nodes is 2, but resources.gpu is 0.5; expected a whole number"),
        ({"nodes": 2, "gpu": "auto"}, "resources.nodes is 2, but resources.gpu is auto; expected a whole number"),
        ({"nodes": 0}, "resources.nodes is 0; expected a whole number >= 1"),
        ({"nodes": 1.5}, "resources.nodes is 1.5; expected a whole number >= 1"),
        (
            {"nodes": 3, "gpu": 2},
            r"resources.nodes is 3, with 2 processes on each, but a step of 4 patches \(batch_size 4 x "
            r"accumulation_steps 1\) cannot be divided among 6 processes; expected resources.gpu x resources.nodes of "
            "1, 2, 4, which",
        ),
        ({"nodes": 3}, "resources.nodes is 3, with 1 process on each, but a step of 4 .* of 1, 2, 4, which"),
    ],
)  # fmt: skip
def test_nodes_that_cannot_train_together_are_refused(resources: dict[str, Any], refused: str) -> None:
    values = {"train": {"batch_size": 4}, "resources": resources, "space": {"lr": {"loguniform": [1e-4, 1e-2]}}}
    if refused:
        with pytest.raises(InputError, match=refused):
            make_sweep_config(values)
    else:
        config = make_sweep_config(values)
        assert config.resources.nodes == resources["nodes"]
        assert not undivided_steps(config)


def test_gpu_hours_count_the_gpus_of_all_nodes() -> None:
    values = {"resources": {"gpu": 2, "nodes": 4}, "train": {"batch_size": 8}, "space": {"lr": {"choice": [0.1, 0.2]}}}
    config = make_sweep_config({**values, "study": {"metric": ["val_dice_mean", "gpu_seconds"]}})
    assert Progress(seconds=3.0).all_gpu_seconds(config) == 24.0


@pytest.mark.parametrize(
    ("places", "size", "count"),
    [
        ([2, 2], 1, 4), ([2, 2], 2, 2), ([4, 1], 2, 1), ([2, 1, 1], 2, 2), ([3, 3, 3], 2, 4), ([3, 3, 3], 3, 3),
        ([8], 2, 0), ([0, 0, 5], 2, 0), ([], 1, 0), ([1, 1, 1, 9], 2, 3),
    ],
)  # fmt: skip
def test_a_trial_takes_places_of_different_nodes(places: list[int], size: int, count: int) -> None:
    assert groups_on_nodes(places, size) == count


def test_what_is_wrong_with_a_node_is_told_as_it_is(cluster: Cluster) -> None:
    cluster.wait()

    @ray.remote(num_cpus=0)
    def fail(error: Exception) -> None:
        raise error

    for error, kind in ((NodeTroubleError("torch sees no GPU on node-b"), NodeTroubleError), (OSError(12), InputError)):
        with pytest.raises(ray.exceptions.RayTaskError) as raised:
            ray.get(fail.remote(error))
        told = reason_of(raised.value, 2)
        assert type(told) is kind
        assert str(told) == str(error) or str(told).startswith("the processes on 2 nodes have not started: ")


def test_what_trials_wait_for_names_the_nodes(cluster: Cluster) -> None:
    cluster.wait()
    assert subject(1, "trial", Slots({"CPU": 1.0, "GPU": 2.0}, 2)) == (
        "1 trial waits for 1 CPU and 2 GPU on each of 2 nodes"
    )


def test_the_interface_of_an_address_is_named() -> None:
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("198.51.100.1") == ""  # an address for documentation, which no machine has


@pytest.mark.slow
def test_more_nodes_than_there_are_are_refused_before_a_case_is_prepared(phantoms: Path, tmp_path: Path) -> None:
    space = tmp_path / "space.yaml"
    space.write_text(TWO_NODES)
    words = ["launch", space, "--data", phantoms, "--out", tmp_path / "run", "--cache_dir", tmp_path / "cache"]
    done = voxtune(*words)
    assert done.returncode == 2
    refused = "resources ask for 1 CPUs and 0 GPUs per trial, on each of 2 nodes; the cluster has 1 node of 1 CPUs and"
    assert refused in done.stderr
    assert "lower them with --set resources.nodes=... --set resources.gpu=..." in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "cache").exists()
