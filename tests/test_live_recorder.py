"""What the driver knows and writes of trials between two of their reports."""

from __future__ import annotations

import os
import platform
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from faults import small_sweep, waiting

from trainable.data.prepare import Data
from trainable.training.step_progress import StepProgress
from tune.driver import live_recorder
from tune.driver.cluster import Cluster
from tune.driver.live_recorder import LiveRecorder
from tune.driver.progress_board import MAX_PENDING_CALLS, BoardReader, ProgressSender, start_board
from tune.driver.sweep import launch
from tune.run.live_state import Activity, LiveState, read_live_state
from tune.run.run_dir import RunDir


def test_the_step_of_a_running_trial_is_in_live_json_and_nothing_runs_at_the_end(
    cluster: Cluster, phantoms: Path, prepared: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_recorder, "WRITE_SECONDS", 0.1)
    run_dir, seen = RunDir(tmp_path / "run"), tmp_path / "seen"
    states: list[LiveState] = []

    def watch() -> None:
        end = time.monotonic() + 300
        while not seen.exists():
            state = read_live_state(run_dir.live)
            if state is not None and (not states or states[-1].activities != state.activities):
                states.append(state)
            if time.monotonic() > end or any(a.phase == "training" for a in (state.activities if state else ())):
                seen.touch()
            time.sleep(0.02)

    watching = threading.Thread(target=watch)
    watching.start()
    config = small_sweep(prepared, phantoms, study={"trials": 1}, train={"epochs": 1})
    launch(config, run_dir.path, cluster=cluster, fit=waiting(seen))
    watching.join()
    phases = [activity.phase for state in states for activity in state.activities]
    assert (phases[0], phases[-1]) == ("starting", "training")
    [activity] = states[-1].activities
    expected = Activity(0, "training", 1, 1, 4, 51.5, activity.updated, platform.node(), ())
    assert activity == expected
    assert states[-1].started < activity.updated < time.time()
    last = read_live_state(run_dir.live)
    assert last is not None
    assert (last.activities, last.pid, last.host) == ((), os.getpid(), platform.node())
    assert last.slots is not None


def test_a_sender_never_waits_and_a_board_keeps_only_what_runs(cluster: Cluster) -> None:
    """A board that never answers does not hold up 1,000 calls, far more than may be on their way at once."""

    class StuckBoard:
        def put(self, activity: Activity) -> None:
            time.sleep(3600)

    remote: Any = ray.remote(StuckBoard)
    stuck = remote.options(num_cpus=0, max_pending_calls=MAX_PENDING_CALLS).remote()
    for done in range(1000):
        ProgressSender(stuck, 3).send(StepProgress("training", 1, done, 1000))
    ray.kill(stuck)
    board = start_board()
    reader = BoardReader(board)
    for number in (3, 4):
        ProgressSender(board, number).send(StepProgress("training", 1, 1, 1000))
    end = time.monotonic() + 120
    while not (known := reader.read([4, 5])) and time.monotonic() < end:
        time.sleep(0.02)
    assert [activity.number for activity in known] == [4]
    ProgressSender(None, 4).send(StepProgress("training", 1, 1, 2))  # nobody looks


def test_what_an_earlier_process_of_a_trial_was_doing_is_not_taken_for_this_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    board: Any = SimpleNamespace(latest=[])
    monkeypatch.setattr(BoardReader, "read", lambda self, running: board.latest)
    monkeypatch.setattr(live_recorder, "READ_SECONDS", 0.0)
    slots: Any = SimpleNamespace(count=lambda: 2)
    live = LiveRecorder(RunDir(tmp_path), slots, board)
    trial: Any = SimpleNamespace(config={"number": 7}, status="RUNNING")
    live.on_trial_start(0, [trial], trial)
    live.on_trial_result(0, [trial], trial, {"host": "node1", "gpus": [2]})
    old = Activity(7, "training", 5, 1, 9, updated=time.time() - 60)
    board.latest = [old]
    live.on_step_end(0, [trial])
    assert [a.phase for a in live.state().activities] == ["starting"]
    board.latest = [replace(old, updated=time.time() + 1)]
    live.on_step_end(0, [trial])
    [activity] = live.state().activities
    assert (activity.phase, activity.host, activity.gpus) == ("training", "node1", (2,))
    live.on_trial_recover(0, [trial], trial)
    assert live.state().activities == ()
    trial.status, board.latest = "PENDING", []
    live.on_step_end(0, [trial])
    assert [a.phase for a in live.state().activities] == ["starting"]
