"""`voxtune retrain --nodes 2`: two raylets on this machine, on the CPU with gloo."""

from __future__ import annotations

import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import rows, start, voxtune
from ray_nodes import OPEN, cluster_of

from trainable.core.errors import InputError
from trainable.data.prepare import Data
from trainable.training.checkpoint import load_checkpoint
from tune.driver.sweep import launch
from tune.retrain import retrain
from tune.spec.sweep_config import make_sweep_config

SMALL = {
    "epochs": 2, "depth": 2, "base_channels": 4, "target_shape": [16, 16, 16], "patches_per_epoch": 16,
    "num_workers": 0, "device": "cpu", "optimizer": "sgd", "batch_size": 8,
}  # fmt: skip


@pytest.fixture(scope="module")
def sweep(phantoms: Path, prepared: Data, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of one trial."""
    folder = tmp_path_factory.mktemp("sweeps") / "run"
    values: dict[str, Any] = {
        "study": {"trials": 1, "seed": 5},
        "resources": {"gpu": 0, "cpu": 1},
        "train": {**SMALL, "data_dir": str(phantoms), "cache_dir": str(prepared.folder)},
        "space": {"lr": {"loguniform": [1e-3, 1e-2]}},
    }
    launch(make_sweep_config(values), folder)
    return folder


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    """A cluster with two nodes of two cores each."""
    with cluster_of(2, 2) as cluster:
        yield cluster


@pytest.fixture
def address(nodes: Any) -> str:
    """The address of the cluster, which counts no node any more that a test has removed."""
    nodes.wait_for_nodes(timeout=90)
    return str(nodes.address)


def rank_pids() -> list[int]:
    """The ids of the processes that train together on a cluster, in the order of their ranks."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if match := re.search(r"rank_link.*\0\S+ \d+ (\d+)\0", path.read_text()):
                found[int(match[1])] = int(path.parent.name)
        except (OSError, UnicodeDecodeError):
            continue
    return [pid for _, pid in sorted(found.items())]


def wait_until(condition: Callable[[], bool], seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.slow
def test_two_nodes_train_as_one_process_does_and_a_lost_process_costs_an_epoch(sweep: Path, address: str) -> None:
    one = retrain(sweep, epochs=6, name="one")
    words = ["retrain", sweep, "--epochs", 6, "--gpus", 2, "--nodes", 2, "--address", address, "--name", "two"]
    process = start("-m", "tune", *words, **OPEN)
    two = sweep / "retrain" / "two"
    wait_until(lambda: len(rows(two)) >= 2)
    pids = rank_pids()
    assert len(pids) == 4
    os.kill(pids[3], signal.SIGKILL)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    lost = r"process 3 of the 4 that train together was killed by SIGKILL on [0-9.]+; the epoch under way is lost, and"
    assert len(re.findall(lost, output)) == 1, output
    assert output.count("device: 4 x cpu") == 2
    assert output.count("test cases: ") == 1
    assert [row["epoch"] for row in rows(two)] == [str(epoch) for epoch in range(1, 7)]
    weights = [load_checkpoint(folder / "checkpoints" / "latest.pth")["network"] for folder in (one, two)]
    torch.testing.assert_close(*weights, rtol=2e-3, atol=2e-5)
    assert not rank_pids()


@pytest.mark.slow
def test_a_lost_node_is_replaced_by_one_that_comes_later(sweep: Path, nodes: Any) -> None:
    words = ["retrain", sweep, "--epochs", 8, "--gpus", 2, "--nodes", 2, "--address", nodes.address, "--name", "lost"]
    process = start("-m", "tune", *words, **OPEN)
    folder = sweep / "retrain" / "lost"
    wait_until(lambda: len(rows(folder)) >= 2)
    nodes.remove_node(nodes.list_all_nodes()[-1], allow_graceful=False)
    wait_until(lambda: not rank_pids())
    assert process.poll() is None
    nodes.add_node(num_cpus=2)
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output
    assert output.count("the epoch under way is lost, and the training goes on from the last checkpoint") == 1
    assert [row["epoch"] for row in rows(folder)] == [str(epoch) for epoch in range(1, 9)]


@pytest.mark.slow
def test_a_node_that_is_lost_while_the_processes_start_is_replaced(sweep: Path, nodes: Any) -> None:
    words = ["retrain", sweep, "--epochs", 2, "--gpus", 2, "--nodes", 2, "--address", nodes.address, "--name", "begun"]
    process = start("-m", "tune", *words, **OPEN)
    wait_until(lambda: len(rank_pids()) == 4)  # they import torch now
    nodes.remove_node(nodes.list_all_nodes()[-1], allow_graceful=False)
    nodes.add_node(num_cpus=2)
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output
    assert output.count("; the epoch under way is lost, and the training goes on from the beginning") == 1, output
    assert [row["epoch"] for row in rows(sweep / "retrain" / "begun")] == ["1", "2"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_end_of_the_command_ends_the_processes_of_all_nodes(sweep: Path, address: str, number: int) -> None:
    words = ["retrain", sweep, "--epochs", 500, "--gpus", 2, "--nodes", 2, "--address", address, "--name", "ended"]
    folder = sweep / "retrain" / "ended"
    process = start("-m", "tune", *words, **OPEN)
    wait_until(lambda: len(rows(folder)) >= 1)
    assert len(rank_pids()) == 4
    process.send_signal(number)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == (128 + number if number == signal.SIGTERM else -number), output
    wait_until(lambda: not rank_pids(), 10)
    shutil.rmtree(folder)


@pytest.mark.slow
def test_too_few_nodes_are_refused_with_what_there_is(sweep: Path, address: str) -> None:
    words = ["retrain", sweep, "--epochs", 2, "--nodes", 2, "--address", address, "--name", "refused"]
    done = voxtune(*words, "--gpus", 4, **OPEN)
    assert done.returncode == 2
    assert not (sweep / "retrain" / "refused").exists()
    assert "--nodes 2: 0 nodes of the cluster have 4 CPU; the cluster has" in done.stderr
    cores = "each process takes the CPU cores of the sweep's resources.cpu"
    nodes = "2 nodes of 2 CPUs and 0 GPUs, 1 node of 0 CPUs and 0 GPUs"
    assert f"the cluster has {nodes}; lower --nodes or --gpus: {cores}" in done.stderr
    assert "Traceback" not in done.stderr


def test_nodes_without_an_address_and_an_address_without_nodes_are_refused(tmp_path: Path) -> None:
    for options in ({"nodes": 2}, {"address": "127.0.0.1:6379"}):
        with pytest.raises(InputError, match="--nodes N and --address HOST:PORT .* go together"):
            retrain(tmp_path, **options)  # type: ignore[arg-type]
