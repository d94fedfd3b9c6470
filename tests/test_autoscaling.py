"""A cluster that Ray's autoscaler adds nodes to, real raylets on this machine: none before trials ask for them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from faults import small_sweep
from helpers import start, wait_for
from optuna.trial import TrialState
from ray_nodes import OPEN, cluster_of

from trainable.core.errors import InputError
from trainable.data.prepare import Data
from trainable.data.split import save_split
from tune.analysis.json_output.status import StatusOutput, status_output
from tune.driver.cluster.autoscaler_compat import _types_of_nodes, autoscales
from tune.driver.cluster.connection import Cluster, Slots
from tune.run.results import read_run
from tune.search.journal import read_trials
from tune.spec.sections import Resources
from tune.spec.sweep_file import dump

MAX_WORKERS = 2


def autoscaler_file(port: int) -> dict[str, Any]:
    """What a file of Ray's cluster launcher says, for raylets on this machine: a head, and nodes of one core."""
    kinds = {
        "head": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "worker": {
            "resources": {"CPU": 1, "object_store_memory": 10**8},
            "node_config": {}, "min_workers": 0, "max_workers": MAX_WORKERS,
        },
    }  # fmt: skip
    empty: dict[str, Any] = {"auth": {}, "docker": {}, "file_mounts": {}}
    for name in ("cluster_synced_files", "rsync_exclude", "rsync_filter", "initialization_commands", "setup_commands"):
        empty[name] = []
    for name in ("head_setup", "worker_setup", "head_start_ray", "worker_start_ray"):
        empty[f"{name}_commands"] = []
    provider = {"type": "fake_multinode", "gcs_address": f"127.0.0.1:{port}", "use_node_id_as_ip": True}
    return {
        **empty, "cluster_name": "fake", "max_workers": MAX_WORKERS, "idle_timeout_minutes": 1, "provider": provider,
        "available_node_types": {"ray.head.default": kinds["head"], "worker": kinds["worker"]},
        "head_node_type": "ray.head.default", "file_mounts_sync_continuously": False, "upscaling_speed": 1.0,
    }  # fmt: skip


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of such a cluster, which is ended with all its nodes."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    file, folder = (
        tmp_path_factory.mktemp("autoscaler") / "cluster.yaml",
        tempfile.mkdtemp(dir="/tmp"),
    )  # short: sockets
    file.write_text(json.dumps(autoscaler_file(port)))
    patience = {"RAY_raylet_start_wait_time_s": "120", "RAY_gcs_server_port_wait_time_s": "120"}
    environment = {**OPEN, **patience, "RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
    head = start(
        Path(sys.executable).parent / "ray", "start", "--head", "--block", "--node-ip-address=127.0.0.1",
        f"--port={port}", "--num-cpus=0", "--object-store-memory=100000000", f"--autoscaling-config={file}",
        "--include-dashboard=false", "--disable-usage-stats", f"--temp-dir={folder}", **environment,
    )  # fmt: skip
    try:
        wait_for(head, lambda: "ray.head.default" in asked_of(f"127.0.0.1:{port}", "__autoscaling_status"))
        with pytest.MonkeyPatch.context() as patch:
            for name, value in OPEN.items():
                patch.setenv(name, value)
            yield f"127.0.0.1:{port}"
    finally:
        os.killpg(head.pid, signal.SIGKILL)
        head.wait()
        shutil.rmtree(folder, ignore_errors=True)


ASK = """
import sys
from ray._raylet import GcsClient
value = GcsClient(address=sys.argv[1]).internal_kv_get(sys.argv[2].encode(), None)
print((value or b"").decode())
"""


def asked_of(address: str, key: str = "autoscaler_resource_request") -> str:
    """What a cluster's key-value store has, by default the request of a program to the autoscaler, as JSON."""
    words = [sys.executable, "-c", ASK, address, key]
    return subprocess.run(words, capture_output=True, text=True, check=False, env=os.environ | OPEN).stdout.strip()


@pytest.mark.slow
def test_a_sweep_asks_for_the_nodes_of_all_its_trials_and_takes_that_back(
    address: str, phantoms: Path, prepared: Data, tmp_path: Path
) -> None:
    """Its driver is killed with two trials under way; what it leaves is taken back by the resumed sweep."""
    space, sweep = tmp_path / "space.yaml", tmp_path / "run"
    space.write_text(dump(small_sweep(prepared, phantoms, study={"trials": 3}, train={"epochs": 12})))

    def status() -> StatusOutput | None:
        return status_output(read_run(sweep)) if (sweep / "study.yaml").exists() else None

    def runs(count: int) -> bool:
        now = status()
        return now is not None and now.counts.get("running") == count

    words = ["-m", "tune", "launch", space, "--data", phantoms, "--out", sweep, "--no_report", "--address", address]
    process = start(*words, **OPEN)
    wait_for(process, lambda: bool((now := status()) and now.waits_for), 240)
    waits_for = status().waits_for  # type: ignore[union-attr]
    assert waits_for == (
        "1 trial waits for 1 CPU: the cluster has 1 node of 0 CPUs and 0 GPUs; the autoscaler was asked for nodes: "
        "`ray status` shows what it does"
    )
    assert json.loads(asked_of(address)) == [{"CPU": 1.0}] * 3
    wait_for(process, lambda: runs(MAX_WORKERS), 240)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert json.loads(asked_of(address)) == [{"CPU": 1.0}] * 3
    process = start("-m", "tune", "resume", sweep, "--no_report", "--address", address, **OPEN)
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output
    assert [trial.state for trial in read_trials(sweep)] == [TrialState.COMPLETE] * 3
    assert asked_of(address) == "[]"


@pytest.mark.slow
def test_a_cluster_without_an_autoscaler_is_not_taken_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in OPEN.items():
        monkeypatch.setenv(name, value)
    with cluster_of(1) as started, Cluster(started.address) as cluster:
        cluster.wait()
        end = time.monotonic() + 120
        while len(set(_types_of_nodes())) < 2:
            assert time.monotonic() < end
            time.sleep(0.5)
        assert not autoscales()
        with pytest.raises(InputError, match="resources ask for 64 CPUs and 0 GPUs per trial, on one node"):
            Slots.of(Resources(cpu=64, gpu=0))


TRAIN = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from types import SimpleNamespace
from ray.autoscaler.sdk import request_resources
from test_trainings import ONE_EACH, run, training
from trainable.core.errors import InputError
from trainable.data.split import load_split
from tune.driver.cluster import node_request
from tune.driver.cluster.connection import Cluster, Slots
from tune.driver.measurement.trial_gpus import refuse_unknown_gpu
from tune.spec.sections import Resources

def note(bundles):
    asked.append(len(bundles))
    request_resources(bundles=bundles)

asked, node_request.request_resources = [], note
folder, cases = Path({folder!r}), SimpleNamespace(split=load_split(Path({split!r})), folder=Path({cases!r}))
with Cluster({address!r}) as cluster:
    cluster.wait()
    outcomes = run([training(folder, cases, name) for name in "ab"], folder, cluster, ONE_EACH)
    print("errors", [outcome.error for outcome in outcomes.values()], "asked", asked[0], asked[-1])
    print("slots", Slots.of(Resources(cpu=64, gpu=1)).count())
    refuse_unknown_gpu(0)
    refuse_unknown_gpu(None, "cpu")
    try:
        refuse_unknown_gpu(None)
    except InputError as error:
        print("refused:", error)
"""


@pytest.mark.slow
def test_trainings_ask_for_nodes_too_and_what_takes_gpus_must_be_said(
    address: str, prepared: Data, tmp_path: Path
) -> None:
    split = tmp_path / "cases.json"
    save_split(prepared.split, split)
    places = {"folder": str(tmp_path), "split": str(split), "cases": str(prepared.folder), "address": address}
    process = start("-c", TRAIN.format(tests=str(Path(__file__).parent), **places), **OPEN)
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output
    assert "errors ['', ''] asked 2 0\n" in output
    assert "slots 1\n" in output
    assert "refused: resources.gpu is not given, and no node that this autoscaling cluster has now has a GPU" in output
