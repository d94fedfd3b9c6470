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
from faults import small_sweep, waiting

from trainable.data.prepare import Data
from trainable.training.step_progress import StepProgress
from tune.driver.cluster.connection import Cluster
from tune.driver.processes.progress_board import BoardAddress, ProgressBoard, ProgressSender, open_socket
from tune.driver.recording import live_recorder
from tune.driver.recording.live_recorder import LiveRecorder
from tune.driver.sweep import launch
from tune.run.live_state import Activity, LiveState, read_live_state
from tune.run.run_dir import RunDir


@pytest.mark.slow
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


def test_a_sender_never_waits_whether_or_not_anybody_reads() -> None:
    """Far more than a system keeps for a reader is sent to a board that is not read, then to one that is closed."""
    with ProgressBoard("127.0.0.1") as board:
        sender, started = ProgressSender(board.address, 3), time.monotonic()
        for done in range(5000):
            sender.send(StepProgress("training", 1, done, 5000, 51.5))
        known = board.read()
        assert known[0] == Activity(3, "training", 1, 0, 5000, 51.5, known[0].updated)
        while board.read():
            pass
        sender.send(StepProgress("validating", 1, 1, 4))
        [activity] = board.read()
        assert (activity.phase, activity.patches_per_second) == ("validating", None)
    sender.send(StepProgress("training", 2, 1, 5000))
    ProgressSender(None, 4).send(StepProgress("training", 1, 1, 2))  # nobody looks
    ProgressSender(BoardAddress("198.51.100.1", 9, b""), 4).send(StepProgress("training", 1, 1, 2))  # no such machine
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "198.51.100.1"])
def test_a_board_ignores_what_does_not_have_its_token(host: str) -> None:
    """The last address is of no machine here, as one that another machine translates: the board listens on all."""
    try:
        board = ProgressBoard(host)
    except OSError:
        pytest.skip(f"this machine has no {host}")
    with board:
        address = replace(board.address, host="127.0.0.1" if host == "198.51.100.1" else host)
        other_token = address.token[:-1] + bytes([address.token[-1] ^ 1])
        for message in (b"", b"[" * 900, bytes(64), other_token + b"[]", b"x" * 60_000):
            with open_socket(address.host) as out:
                out.sendto(message, (address.host, address.port))
        ProgressSender(address, 5).send(StepProgress("training", 1, 1, 2))
        assert [activity.number for activity in board.read()] == [5]


def test_what_an_earlier_process_of_a_trial_was_doing_is_not_taken_for_this_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_recorder, "READ_SECONDS", 0.0)
    slots: Any = SimpleNamespace(count=lambda: 2)
    trial: Any = SimpleNamespace(config={"number": 7}, status="RUNNING")
    with ProgressBoard("127.0.0.1") as board:
        live, sender = LiveRecorder(RunDir(tmp_path), slots, board), ProgressSender(board.address, 7)
        sender.send(StepProgress("training", 5, 1, 9))
        live.on_trial_start(0, [trial], trial)
        live.on_trial_result(0, [trial], trial, {"host": "node1", "gpus": [2]})
        live.on_step_end(0, [trial])
        assert [a.phase for a in live.state().activities] == ["starting"]
        sender.send(StepProgress("training", 1, 1, 9))
        live.on_step_end(0, [trial])
        [activity] = live.state().activities
        assert (activity.phase, activity.host, activity.gpus) == ("training", "node1", (2,))
        sender.send(StepProgress("training", 1, 2, 9))
        live.on_trial_recover(0, [trial], trial)
        assert live.state().activities == ()
        trial.status = "PENDING"
        live.on_step_end(0, [trial])
        assert [a.phase for a in live.state().activities] == ["starting"]
