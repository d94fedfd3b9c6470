"""A node that Ray has given up comes back: what its processes still write spoils nothing of what goes on elsewhere."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from faults import small_sweep
from helpers import rows, start, wait_for
from ray_nodes import OPEN, cluster_of

from trainable.bundle.contents import sha256_of
from tune.run.results import read_run
from tune.run.run_dir import RunDir
from tune.run.verify import verify
from tune.spec.sweep_file import dump

TRAINS = "ray::ImplicitFunc"  # the process of a trial


def processes_of(node: Any) -> dict[int, str]:
    """The processes of a node, by id, with their commands: its raylet and what that has started."""
    listing = subprocess.run(["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    rows = [line.split(maxsplit=2) for line in listing.splitlines()]
    found = {node.all_processes["raylet"][0].process.pid: "raylet"}
    for _ in range(3):  # generations
        found |= {int(pid): command for pid, parent, command in rows if int(parent) in found}
    return found


def trainer_of(node: Any) -> int | None:
    """The process on a node that runs a trial; None if there is none."""
    return next((pid for pid, command in processes_of(node).items() if command.startswith(TRAINS)), None)


def send(number: signal.Signals, *pids: int) -> None:
    for pid in pids:
        os.kill(pid, number)


def checkpoints(run: RunDir) -> dict[Path, str]:
    """The checkpoint files in the storage, with their hashes."""
    return {path: sha256_of(path) for path in sorted(run.path.glob("ray/*/0000/checkpoint_*/*.pth"))}


@pytest.mark.slow
def test_a_process_that_comes_back_writes_into_no_checkpoint_of_its_trial(
    prepared: Any, phantoms: Path, tmp_path: Path
) -> None:
    """All processes of its node are frozen, the trial moves, and the process of before goes on for an epoch."""
    space, run = tmp_path / "space.yaml", RunDir(tmp_path / "run")
    space.write_text(dump(small_sweep(prepared, phantoms, study={"trials": 1}, train={"epochs": 60})))
    trial = run.trial(0)
    with cluster_of(1, 1) as cluster:
        words = ["-m", "tune", "launch", space, "--data", phantoms, "--out", run.path, "--no_report"]
        process = start(*words, "--address", cluster.address, **OPEN)
        wait_for(process, lambda: len(rows(trial.path)) > 2)
        [frozen] = [node for node in cluster.worker_nodes if trainer_of(node)]
        [other] = cluster.worker_nodes - {frozen}
        before = trainer_of(frozen)
        assert before is not None
        send(signal.SIGSTOP, *processes_of(frozen))
        epochs = len(rows(trial.path))
        wait_for(process, lambda: len(rows(trial.path)) > epochs)  # on the other node
        after = trainer_of(other)
        assert after is not None
        send(signal.SIGSTOP, after)
        kept = checkpoints(run)
        send(signal.SIGCONT, before)
        wait_for(process, lambda: checkpoints(run) != kept)
        written = checkpoints(run)
        send(signal.SIGCONT, after, *processes_of(frozen))
        assert process.wait(timeout=240) == 0, process.communicate()[0]
    assert {path: written[path] for path in kept} == kept
    [late] = {path.parent.name for path in written.keys() - kept.keys()}
    assert late[: len("checkpoint_000000")] in {path.parent.name[: len("checkpoint_000000")] for path in kept}
    found = read_run(run.path)
    assert not any(verify(found).values())
    assert [int(row["epoch"]) for row in rows(trial.path)] == list(range(1, 61))
