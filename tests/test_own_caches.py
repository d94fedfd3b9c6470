"""A cluster without a shared cache: each machine prepares the cases on a disk of its own, once."""

from __future__ import annotations

import json
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from network_folder import CASES, NEEDS_MACHINES, shared
from node_network import Machine, Network, ray_network, wait_for_loss, wait_for_nodes

from tune.run.events import read_events
from tune.run.run_dir import RunDir

__all__ = ["shared"]  # a fixture
pytestmark = NEEDS_MACHINES


@pytest.fixture(scope="module")
def network(shared: Path) -> Iterator[Network]:
    """A head without cores, two nodes of two trials each; not started yet: one without cases, one with a small disk.

    In SHARED/local each has its own disk.
    """
    (shared / "local").mkdir()
    own = f"mount -t tmpfs none {shared}/local"
    blind = f"{own} && mount -t tmpfs none {shared}/data"
    with ray_network(shared, [("head", ""), ("node-a", own), ("node-b", own)], cpus=2) as network:
        network.add("node-c", blind)
        network.add("node-d", f"mount -t tmpfs -o size=200k none {shared}/local")
        yield network


def inside(machine: Machine, *words: object) -> str:
    """Run a command among the mounts of a machine's Ray node; return what it prints."""
    command = ["nsenter", "-t", str(machine.processes()[-1]), "-m", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def listing(machine: Machine, folder: Path) -> list[str]:
    """The names in a folder as a machine's Ray node sees it."""
    return inside(machine, "ls", folder).split()


def preparations(texts: Iterator[Path]) -> Counter[str]:
    """How often each machine has prepared cases, by the logs of its trainings."""
    lines = [line for path in texts for line in path.read_text().splitlines() if " prepares what " in line]
    return Counter(line.split()[0] for line in lines)


def test_each_node_prepares_the_cases_once_on_its_own_disk(network: Network, shared: Path) -> None:
    cache, run = shared / "local/cache", RunDir(shared / "run")
    words = [shared / "space.yaml", "--data", shared / "data", "--cache_dir", cache, "--out", run.path]
    doctor = network.head.voxtune("doctor", *words, "--address", network.address, "--json")
    content = json.loads(doctor.stdout[doctor.stdout.index("\n{") :])
    found = {node["name"]: {check["name"]: check["value"] for check in node["checks"]} for node in content["nodes"]}
    assert [found[name]["cache"] for name in ("head (driver)", "node-a", "node-b")] == ["seen", "its own", "its own"]
    assert "GiB" in found["node-a"]["free in cache"]
    note = "the cache is not shared: node-a, node-b will have its own, and prepare there what it lacks"
    assert note in content["notes"]

    done = network.head.voxtune("launch", *words, "--trials", 8, "--address", network.address, "--no_report")
    assert done.returncode == 0, done.stdout
    assert note in done.stdout
    hosts = {event.host for event in read_events(run.events) if event.host}
    assert hosts == {"node-a", "node-b"}
    assert preparations(run.trials.glob("*/stdout.log")) >= Counter(hosts)
    for machine in network.machines[1:3]:
        assert listing(machine, cache) == CASES
    audit = network.head.voxtune("verify", run.path)
    assert audit.returncode == 0, audit.stdout


def test_both_nodes_of_a_trial_prepare_the_cases_on_their_own_disks(network: Network, shared: Path) -> None:
    """The nodes have addresses of their own, which gloo must use: no machine's name stands for one."""
    cache, run = shared / "local/of_two", RunDir(shared / "two")
    words = ["--data", shared / "data", "--cache_dir", cache, "--out", run.path, "--trials", 1, "--no_report"]
    words += ["--set", "resources.nodes=2", "--set", "early_stopping.type=none"]
    done = network.head.voxtune("launch", shared / "space.yaml", *words, "--address", network.address)
    assert done.returncode == 0, done.stdout
    for machine in network.machines[1:3]:
        assert listing(machine, cache) == CASES
    begun = [event.text for event in read_events(run.events) if event.host]
    assert len(begun) == 1
    assert re.search(r"on node-[ab] and on 10\.\S+$", begun[0]), begun
    audit = network.head.voxtune("verify", run.path)
    assert audit.returncode == 0, audit.stdout
    words = ["retrain", run.path, "--nodes", 2, "--epochs", 1, "--address", network.address]
    again = network.head.voxtune(*words)
    assert again.returncode == 0, again.stdout
    assert "device: 2 x cpu" in again.stdout


def test_a_node_that_can_neither_see_nor_prepare_a_cache_is_refused_before_a_confirmation(
    network: Network, shared: Path
) -> None:
    network.machines[3].start_ray("--num-cpus=1")
    wait_for_nodes(network, [network.machines[3]])
    words = ["confirm", shared / "run", "--top", 1, "--seeds", 2, "--address", network.address]
    refused = network.head.voxtune(*words)
    assert refused.returncode == 2, refused.stdout
    assert "error: node-c: cache: the driver's is not there, and without DATA the node cannot" in refused.stdout
    network.machines[3].stop()
    wait_for_loss(network, network.machines[3])  # else the confirmation names it as a node that does not answer
    for machine in network.machines[1:3]:
        inside(machine, "rm", "-r", shared / "local/cache")
    confirmed = network.head.voxtune(*words)
    assert confirmed.returncode == 0, confirmed.stdout
    assert " nodes checked: all " in confirmed.stdout
    for machine in network.machines[1:3]:
        assert listing(machine, shared / "local/cache") == CASES
    logs = shared.glob("run/confirm/trainings/**/stdout.log")
    assert preparations(logs) >= Counter(["node-a", "node-b"])


def test_a_full_disk_of_a_node_ends_the_sweep_with_its_name(network: Network, shared: Path) -> None:
    """The other nodes are full of work, so that a trial gets there."""
    full = network.machines[4]
    full.start_ray("--num-cpus=1")
    wait_for_nodes(network, [full])
    words = ["--data", shared / "data", "--cache_dir", shared / "local/cache", "--out", shared / "full", "--trials", 12]
    done = network.head.voxtune("launch", shared / "space.yaml", *words, "--address", network.address, "--no_report")
    assert done.returncode == 1, done.stdout
    why = f"stopped by the cache on node-d: {shared}/local/cache: the cache cannot be written ([Errno 28] No space left"
    assert why in done.stdout, done.stdout
    assert "free some space, or choose a cache_dir that can be" in done.stdout
    assert f"go on with: voxtune resume {shared}/full" in done.stdout
