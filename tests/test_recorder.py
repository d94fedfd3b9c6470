"""What the driver does in the background of a sweep."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tune.driver.recording import recorder
from tune.driver.recording.recorder import Recorder
from tune.run.run_dir import RunDir


def make_recorder(monkeypatch: pytest.MonkeyPatch, outcomes: list[Any]) -> Recorder:
    """A recorder whose background work has these outcomes, one after the other."""

    def work(*_: Any) -> bool:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return bool(outcome)

    monkeypatch.setattr(recorder, "sync_outputs", work)
    monkeypatch.setattr(recorder, "Retention", lambda run: None)
    monkeypatch.setattr(recorder, "write_notes", lambda journal, run, trials: None)
    monkeypatch.setattr(Recorder, "read_current", lambda self: self.run)
    run: Any = SimpleNamespace(dir=RunDir(Path("run")), trial=lambda number: None)
    screen: Any = SimpleNamespace(due=lambda: False, refresh=lambda run, live: None)
    snapshot: Any = SimpleNamespace(due=lambda: False)
    live: Any = SimpleNamespace(state=lambda: None)
    events: Any = SimpleNamespace(ended=lambda trial, run: None)
    unused: Any = None
    stopper: Any = SimpleNamespace(trial_ended=lambda run: None)
    return Recorder(run, unused, stopper, snapshot, screen, live, events)


def step(made: Recorder) -> None:
    made.on_step_end(0, [])
    made.worker.wait()


@pytest.mark.parametrize("error", [OSError("full"), ValueError("no such bucket"), RuntimeError("torch")])
def test_what_fails_in_the_background_is_printed_once_and_tried_again(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    outcomes = [error, error, False, True, True]
    made = make_recorder(monkeypatch, outcomes)
    step(made)
    assert len(outcomes) == 5  # nothing was to do
    made.next_sync = 0.0
    step(made)
    step(made)
    assert len(outcomes) == 4  # it waits before it tries again
    monkeypatch.setattr(recorder, "RETRY_SECONDS", 0.0)
    made.next_sync = 0.0
    for left in (3, 2, 1, 1):  # fails again, on its way, done, nothing to do
        step(made)
        assert len(outcomes) == left
    assert capsys.readouterr().out == f"run/best and the checkpoints are not up to date: {error}\n"


def test_run_is_brought_up_to_date_as_trials_end_but_not_all_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes = [True] * 3
    made = make_recorder(monkeypatch, outcomes)
    now = 100.0
    monkeypatch.setattr(recorder.time, "monotonic", lambda: now)
    for moment, left in [(100.0, 2), (100.2, 2), (100.9, 2), (101.0, 1), (150.0, 0)]:
        now = moment
        made.finish(0)
        step(made)
        assert len(outcomes) == left
    step(made)  # nothing ended since
    assert not outcomes
