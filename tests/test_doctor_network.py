"""The check of nodes on real ones: machines with their own addresses, names and mounts, of which some are sick."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from network_folder import NEEDS_MACHINES, shared
from node_network import Network, ray_network

__all__ = ["shared"]  # a fixture
pytestmark = NEEDS_MACHINES
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def network(shared: Path) -> Iterator[Network]:
    """A head without cores; node-a without the cases, node-b with another torch, node-c with a full disk for Ray."""
    torch = shared / "other/torch"
    torch.mkdir(parents=True)
    (torch / "__init__.py").touch()
    (torch / "version.py").write_text("__version__ = '2.5.1+cu124'\n")
    machines = [
        ("head", ""),
        ("node-a", f"mount -t tmpfs none {shared}/data"),
        ("node-b", f"export PYTHONPATH={shared}/other:{ROOT}"),
        ("node-c", f"mount -t tmpfs -o size=24m none {shared}/ray"),
    ]
    with ray_network(shared, machines) as network:
        yield network


def findings(content: dict[str, Any]) -> dict[str, dict[str, str]]:
    """By node and row the level of what is not ok."""
    return {
        node["name"]: {check["name"]: check["level"] for check in node["checks"] if check["level"] != "ok"}
        for node in content["nodes"]
    }


def test_doctor_names_what_each_sick_node_has(network: Network, shared: Path) -> None:
    words = ["doctor", shared / "space.yaml", "--data", shared / "data", "--out", shared / "run"]
    done = network.head.voxtune(*words, "--address", network.address, "--json")
    assert done.returncode == 1, done.stdout
    content = json.loads(done.stdout[done.stdout.index("{") :])
    assert findings(content) == {
        "head (driver)": {},
        "node-a": {"DATA": "warning"},
        "node-b": {"torch": "wrong"},
        "node-c": {"free for Ray": "warning"},
    }
    assert [node["address"] for node in content["nodes"]] == [f"10.77.0.{number}" for number in range(1, 5)]
    assert content["notes"] == ["3 trials at once if nothing else runs, each with 1 CPU and 0 GPU"]
    assert content["cluster"] == []  # which requires a token
    assert not (shared / "run").exists()
    assert not list(shared.rglob(".voxtune-probe*"))


def test_a_launch_is_refused_before_anything_is_made(network: Network, shared: Path) -> None:
    words = ["launch", shared / "space.yaml", "--data", shared / "data", "--out", shared / "run"]
    done = network.head.voxtune(*words, "--address", network.address)
    assert done.returncode == 2
    refusal = done.stdout[done.stdout.index("error: ") :]
    assert refusal.startswith("error: node-b: torch 2.5.1+cu124, the driver has ")
    assert f"look again with `voxtune doctor ... --address {network.address}`" in refusal
    assert "node-a: DATA: the folder is empty, as without its mount" in done.stdout
    assert "Traceback" not in done.stdout
    assert not (shared / "run").exists()
    assert not (shared / "data.cache").exists()


def test_a_client_without_a_token_or_with_a_wrong_one_is_refused_at_once(network: Network) -> None:
    for environment in (
        {"RAY_AUTH_MODE": "disabled"},
        {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64, "RAY_AUTH_TOKEN_PATH": ""},
    ):
        began = time.monotonic()
        done = network.head.voxtune("doctor", "--address", network.address, **environment)
        assert done.returncode == 2
        assert "this cluster requires its own token: set RAY_AUTH_MODE=token" in done.stdout
        assert time.monotonic() - began < 30  # Ray itself tries for two minutes


def test_a_node_with_no_room_at_all_and_one_that_hangs_are_named(network: Network, shared: Path) -> None:
    hangs, full = network.machines[1], network.machines[3]
    inside = ["nsenter", "-t", str(full.processes()[-1]), "-m", "sh", "-c"]
    subprocess.run([*inside, f"cat /dev/zero > {shared}/ray/filler"], check=False, capture_output=True)
    hangs.pause()
    try:
        done = network.head.voxtune("doctor", "--address", network.address, "--json")
    finally:
        hangs.resume()
        subprocess.run([*inside, f"rm {shared}/ray/filler"], check=True)
    content = json.loads(done.stdout[done.stdout.index("\n{") :])
    advice = {node["name"]: node["checks"][0]["advice"] for node in content["nodes"]}
    assert advice.pop("node-a").startswith("does not answer: Ray has lost it while it was asked; see `ray status`")
    assert "No space left on device" in advice.pop("node-c")
    assert set(advice.values()) == {""}
