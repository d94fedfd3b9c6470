"""What trials wait for and who holds it, in words that give no secret away; what no node can ever run."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import ray
from helpers import clean_environment

from trainable.core.errors import InputError
from tune.driver.cluster.connection import Cluster, Slots
from tune.driver.cluster.wait_watch import program, subject, taken_line
from tune.driver.processes.node_ranks import reserved_nodes
from tune.run.events import Event, EventKind, waits_for
from tune.spec.sections import Resources


@pytest.mark.parametrize(
    ("command_line", "name"),
    [
        ("/venv/bin/python /venv/bin/voxtune launch brats --notify https://host/SECRET", "voxtune launch"),
        ("/venv/bin/python3.11 -m tune resume /data/run", "tune resume"),
        ("python other.py --token SECRET", "other.py"),
        ("python -c 'import ray; SECRET'", "python"),
        ("python it's", "python"),
        ("", "a program"),
    ],
)
def test_a_program_is_named_without_its_arguments(command_line: str, name: str) -> None:
    assert program(command_line) == name


OTHER = """
import sys, time
import ray
from ray.util.placement_group import placement_group
ray.init(address=sys.argv[1], log_to_driver=False)
ray.get(placement_group([{"CPU": 1}]).ready())
print("held", flush=True)
time.sleep(600)
"""


def wait_with_words(cpus: float, caplog: pytest.LogCaptureFixture, other: subprocess.Popen[str]) -> None:
    """Wait as a retraining on several nodes does for all cores, of which the other program has one."""
    placed = threading.Event()

    def reserve() -> None:
        with reserved_nodes(1, {"CPU": cpus}):
            placed.set()

    waiting = threading.Thread(target=reserve)
    with caplog.at_level(logging.INFO):
        waiting.start()
        while "waits for" not in caplog.text:
            assert not placed.wait(0.1)
        other.kill()
        waiting.join(timeout=60)
    assert placed.is_set()
    held, ended = [record.getMessage() for record in caplog.records if "wait" in record.getMessage()]
    taken = f"1 of {cpus:g} CPU are taken by other_sweep.py (process {other.pid} on "
    assert held.startswith(f"1 training waits for {cpus:g} CPU: {taken}")
    assert ended.startswith("no training waits any more; it took 0:0")


def test_the_other_program_that_holds_the_cores_is_named(
    cluster: Cluster, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cluster.wait()
    total = ray.cluster_resources()
    assert taken_line({"CPU": 1.0}, total, total) == f"0 of {total['CPU']:g} CPU are taken by others"
    script = tmp_path / "other_sweep.py"
    script.write_text(OTHER)
    address, token = ray.get_runtime_context().gcs_address, os.environ["RAY_AUTH_TOKEN"]
    environment = clean_environment() | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    other = subprocess.Popen(
        [sys.executable, script, address, "SECRET"], stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        assert other.stdout is not None
        while "held" not in (line := other.stdout.readline()):
            assert line
        left = {**total, "CPU": total["CPU"] - 1}
        line = taken_line({"CPU": 1.0, "GPU": 0.5}, total, left)
        taken = f"1 of {total['CPU']:g} CPU, 0 of 0 GPU are taken by other_sweep.py (process {other.pid} on "
        assert subject(7, "training", Slots({"CPU": 1.0, "GPU": 0.5})) == "7 trainings wait for 1 CPU and 0.5 GPU each"
        assert line.startswith(taken)
        assert line.endswith("): 1 CPU")
        assert "SECRET" not in line
        wait_with_words(total["CPU"], caplog, other)
    finally:
        other.kill()
        other.wait()


def test_what_no_node_can_ever_run_is_refused_with_what_the_nodes_have(cluster: Cluster) -> None:
    cluster.wait()
    cores = ray.cluster_resources()["CPU"]
    expected = (
        rf"ask for 1000 CPUs and 0 GPUs per trial, on one node; the cluster has 1 node of {cores:g} CPUs and 0 GPUs; "
    )
    with pytest.raises(InputError, match=expected):
        Slots.of(Resources(cpu=1000, gpu=0))


def test_trials_wait_until_none_does_or_the_sweep_ends() -> None:
    waits = Event(2.0, EventKind.TRIAL_WAITS, "waits for 1 GPU")
    assert waits_for([]) == ""
    for kind in (EventKind.NEW_BEST, EventKind.TRIAL_STARTED):  # others may wait on
        assert waits_for([waits, Event(3.0, kind, "")]) == "waits for 1 GPU"
    for kind in (EventKind.WAIT_ENDED, EventKind.SWEEP_ENDED, EventKind.SWEEP_STARTED):
        assert waits_for([waits, Event(3.0, kind, "")]) == ""
