"""The entrypoint of cluster/kuberay/rayjob.yaml as jobs of a real Ray: a head without CPUs, a worker, a token."""

from __future__ import annotations

import importlib.util
import secrets
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest
import yaml
from helpers import rows, voxtune
from job_environment import ROOT, job_environment, write_space
from slurm_cluster import free_ports

RAY = (sys.executable, "-m", "ray.scripts.scripts")  # the program `ray`, by the Python of the tests
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("aiohttp_cors") is None,
        reason="Ray's job server is not installed: pip install -c constraints.txt '.[ray-dashboard]'",
    ),
]


class RayCluster:
    """A head without CPUs, a worker with one, as a context, and what `ray job` needs to reach them.

    Args:
        folder: for Ray's own files; its path must be short.
        environment: of all processes, with the token.
    """

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder, self.environment = folder, environment
        self.port, server, *self.agents = free_ports(4)
        self.server, self.jobs = server, f"http://127.0.0.1:{server}"
        self.nodes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        server = [f"--port={self.port}", f"--dashboard-port={self.server}", f"--temp-dir={self.folder}"]
        self.start("--head", *server, "--num-cpus=0", f"--dashboard-agent-listen-port={self.agents[0]}")
        end = time.monotonic() + 120
        while (answer := self.job("list")).returncode:
            assert time.monotonic() < end, answer.stderr
        worker = [f"--address=127.0.0.1:{self.port}", f"--dashboard-agent-listen-port={self.agents[1]}"]
        self.start(*worker, "--num-cpus=1")
        return self

    def __exit__(self, *_: object) -> None:
        for node in reversed(self.nodes):
            node.terminate()
            node.wait(timeout=60)

    def start(self, *words: str) -> None:
        """Start a node."""
        options = ["--node-ip-address=127.0.0.1", "--disable-usage-stats", "--object-store-memory=100000000", "--block"]
        self.nodes.append(
            subprocess.Popen([*RAY, "start", *words, *options], env=self.environment, stdout=subprocess.DEVNULL)
        )

    def job(self, verb: str, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a verb of `ray job` to its end."""
        return subprocess.run(
            [*RAY, "job", verb, "--address", self.jobs, *words],
            capture_output=True, text=True, check=False, timeout=300, env=self.environment | environment,
        )  # fmt: skip


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[RayCluster]:
    """A cluster that requires a token, whose processes find what this checkout installs."""
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    environment = job_environment(tmp_path) | token
    short = tempfile.TemporaryDirectory(prefix="vj", dir="/tmp", ignore_cleanup_errors=True)
    with short as folder, RayCluster(Path(folder), environment) as cluster:
        yield cluster


def entrypoint(run: Path, space: Path, data: Path) -> list[str]:
    """Return the words of rayjob.yaml's entrypoint, for another folder, space and cases, and 5 trials."""
    job = yaml.safe_load((ROOT / "cluster/kuberay/rayjob.yaml").read_text())
    other = {"/shared/RUN": run, "brats": space, "/shared/DATA": data, "64": 5}
    words = shlex.split(job["spec"]["entrypoint"])
    assert set(other) <= set(words)
    return [str(other.get(word, word)) for word in words]


def test_a_job_that_is_stopped_and_submitted_again_resumes_its_sweep(
    cluster: RayCluster, phantoms: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    words = entrypoint(run, write_space(tmp_path, 8), phantoms)
    stranger = cluster.job("list", RAY_AUTH_MODE="disabled", RAY_AUTH_TOKEN="")
    assert stranger.returncode != 0
    assert "Unauthorized" in stranger.stdout + stranger.stderr
    first = cluster.job("submit", "--submission-id=first", "--no-wait", "--", *words)
    assert first.returncode == 0, first.stderr
    end = time.monotonic() + 300
    while not rows(run / "trials/0000"):
        assert time.monotonic() < end, cluster.job("logs", "first").stdout
        time.sleep(0.2)
    stopped = cluster.job("stop", "first")  # which waits until it has ended
    assert "Job 'first' was stopped" in stopped.stdout + stopped.stderr
    begun = cluster.job("logs", "first").stdout
    assert f"voxtune launch {run}, with Ray at auto" in begun
    assert "all 5 trials have ended" not in begun
    second = cluster.job("submit", "--submission-id=second", "--", *words)
    assert second.returncode == 0, second.stdout + second.stderr
    assert f"voxtune resume {run}, with Ray at auto" in second.stdout
    assert "resumed: attempt 2" in second.stdout
    assert "all 5 trials have ended" in second.stdout
    assert voxtune("verify", run).returncode == 0
