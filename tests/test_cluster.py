"""The Ray cluster of a sweep: how it starts and ends, and how much fits on it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
import ray
from ray.tune.execution.tune_controller import _get_max_pending_trials
from ray.tune.search import Searcher
from ray.tune.search.search_generator import SearchGenerator

from trainable.config import InputError
from tune import cluster
from tune.cluster import Cluster, fitting

SCRIPT = """
import signal, time
from tune.__main__ import stop
from tune.cluster import Cluster

signal.signal(signal.SIGTERM, stop)
with Cluster() as cluster:
    print("starting", flush=True)
    cluster.wait()
    print("started", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("moment", ["starting", "started"])
def test_sigterm_ends_the_process_and_its_cluster_cleanly(moment: str) -> None:
    process = subprocess.Popen([sys.executable, "-c", SCRIPT], stdout=-1, stderr=-1, text=True)
    assert process.stdout is not None
    while process.stdout.readline().strip() != moment:
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert said.strip() == "stopped by SIGTERM; what was finished is kept"


def test_a_cluster_that_is_entered_inside_ends_with_the_outermost(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []

    def start(address: str | None) -> None:
        time.sleep(0.2)
        events.append(f"start {address}")

    monkeypatch.setattr(cluster, "start_ray", start)
    monkeypatch.setattr(ray, "shutdown", lambda: events.append("end"))
    with Cluster("here") as one:
        with one:
            pass
        assert events == []
        one.wait()
        assert events == ["start here"]
    assert events == ["start here", "end"]


def test_an_error_of_the_start_is_told_where_it_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(address: str | None) -> None:
        raise InputError("no cluster answers there")

    monkeypatch.setattr(cluster, "start_ray", start)
    with Cluster("here"):
        pass  # nobody asks
    with pytest.raises(InputError, match="no cluster answers there"), Cluster("here") as one:
        one.wait()


def test_what_ray_reads_is_set_and_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "start_ray", lambda address: None)
    monkeypatch.setenv("TUNE_MAX_PENDING_TRIALS_PG", "3")
    monkeypatch.delenv("RAY_AIR_NEW_OUTPUT", raising=False)
    with Cluster():
        assert os.environ["TUNE_MAX_PENDING_TRIALS_PG"] == "3"
        assert os.environ["RAY_AIR_NEW_OUTPUT"] == "0"


def test_ray_is_to_start_all_processes_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """By default it starts one after the other for a searcher that is not its own."""
    monkeypatch.setattr(cluster, "start_ray", lambda address: None)
    monkeypatch.delenv("TUNE_MAX_PENDING_TRIALS_PG", raising=False)
    assert _get_max_pending_trials(SearchGenerator(Searcher())) == 1
    with Cluster():
        assert _get_max_pending_trials(SearchGenerator(Searcher())) == 100_000


def test_shares_of_a_gpu_are_not_put_together_from_two() -> None:
    assert fitting(2, 0.4) == 4
    assert fitting(4, 0.3) == 12
    assert fitting(1, 1 / 3) == 3
    assert fitting(8, 1.0) == 8
    assert fitting(7, 2.0) == 3
    assert fitting(0, 0.5) == 0
