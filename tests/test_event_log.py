"""What the driver notes as the events of a sweep."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from helpers import SWEEP, make_report, report_all, start_journal

from tune.driver.recording.event_log import EventLog
from tune.driver.sweep import finalize
from tune.run.events import Event, EventKind, append_event, read_events
from tune.run.live_state import LiveState, write_live_state
from tune.run.results import Run, read_run
from tune.run.run_dir import RunDir
from tune.run.snapshot import Snapshot
from tune.search.asha import CONTINUE, PAUSE, STOP, RungDecision
from tune.spec.sweep_config import make_sweep_config
from tune.spec.sweep_file import dump


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run in which trial 0 has ended with 0.5."""
    config = make_sweep_config(SWEEP)
    (tmp_path / "study.yaml").write_text(dump(config))
    journal, scheduler = start_journal(tmp_path, config)
    number, _ = journal.ask()
    report_all(journal, scheduler, number, make_report(9, 0.5, end_reason="epochs"))
    journal.tell(number)
    return read_run(tmp_path)


def texts(run: Run) -> list[str]:
    return [event.text for event in read_events(run.dir.events)]


def test_a_decision_is_an_event_only_if_it_stops_a_trial_or_would_have(run: Run) -> None:
    events = EventLog(run.dir)
    events.decided(1, 3, RungDecision(0.5, CONTINUE, "", 0.4, 3))
    events.decided(1, 9, RungDecision(0.17, STOP, "", 0.448, 4))
    events.decided(2, 3, RungDecision(0.1, CONTINUE, "default", 0.4, 3))
    events.decided(2, 9, RungDecision(0.2, CONTINUE, "default"))  # it was kept at the rung before
    events.decided(3, 3, RungDecision(0.1, CONTINUE, "audit", 0.4, 3))
    assert texts(run) == [
        "stopped at epoch 9: 0.1700, 0.4480 was needed",
        "goes on at epoch 3 despite 0.1000, 0.4000 was needed: it is the default recipe",
        "goes on at epoch 3 despite 0.1000, 0.4000 was needed: early_stopping.audit has drawn it",
    ]
    assert [event.kind.value for event in read_events(run.dir.events)] == ["trial_stopped", "trial_kept", "trial_kept"]


def test_a_pause_and_what_becomes_of_it_are_events(run: Run) -> None:
    events = EventLog(run.dir)
    events.decided(1, 3, RungDecision(0.5, PAUSE))
    events.promoted(1, 3, RungDecision(0.5, CONTINUE, "", 0.4, 5))
    events.promoted(2, 3, RungDecision(0.3, CONTINUE, "default", 0.4, 5))
    events.promoted(3, 3, RungDecision(0.3, STOP, "", 0.4, 5))
    assert texts(run) == [
        "paused at epoch 3: 0.5000",
        "is among the best at epoch 3 and goes on: 0.5000",
        "goes on at epoch 3 despite 0.3000, 0.4000 was needed: it is the default recipe",
        "stopped at epoch 3: 0.3000, 0.4000 was needed",
    ]
    kinds = [event.kind.value for event in read_events(run.dir.events)]
    assert kinds == ["trial_paused", "trial_promoted", "trial_kept", "trial_stopped"]


def test_a_start_says_on_which_gpus_of_which_machine_and_after_which_epoch(run: Run) -> None:
    where = make_report(0, 0.0) | {"host": "node1"}
    events = EventLog(run.dir)
    events.started(1, where | {"gpus": []}, 0)  # type: ignore[arg-type]
    events.started(1, where | {"gpus": [2, 3]}, 5)  # type: ignore[arg-type]
    assert texts(run) == ["started on node1", "goes on after epoch 5 on GPU 2, 3 of node1"]
    assert [event.gpus for event in read_events(run.dir.events)] == [(), (2, 3)]


def test_a_winner_of_an_earlier_attempt_is_no_new_best(run: Run) -> None:
    events = EventLog(run.dir)
    with events.attempt(run, lambda: "all is done"):
        events.ended(run.trial(0), run)
    assert texts(run) == ["launched", "complete at epoch 9/9, val_dice_mean 0.5000", "all is done"]
    with events.attempt(Run(run.dir, run.config, []), lambda: "all is done"):
        events.ended(run.trial(0), run)
    assert texts(run)[3:6] == ["resumed: attempt 2", texts(run)[1], "new winner, val_dice_mean 0.5000"]


def test_the_score_that_a_trial_is_ranked_by_is_told_if_it_is_another_one(run: Run) -> None:
    trial = replace(run.trial(0), late_score=0.41)
    EventLog(run.dir).ended(trial, Run(run.dir, run.config, [trial]))
    ended = "val_dice_mean 0.5000, late 0.4100"
    assert texts(run) == [f"complete at epoch 9/9, {ended}", f"new winner, {ended}"]


def test_what_a_killed_driver_could_not_note_is_noted_by_the_next_one(run: Run) -> None:
    append_event(run.dir.events, Event(100.0, EventKind.SWEEP_STARTED, "launched"))
    append_event(run.dir.events, Event(101.0, EventKind.TRIAL_STARTED, "started on node1", 0))
    write_live_state(run.dir.live, LiveState(130.0, 100.0, "node1", 7))
    heard: list[Event] = []
    with EventLog(run.dir, heard.append).attempt(run, lambda: "all is done"):
        pass
    _, _, ended, killed, *rest = read_events(run.dir.events)
    assert (ended.trial, ended.time, ended.status) == (0, 130.0, "complete")
    assert (killed.kind, killed.time, killed.text) == (EventKind.SWEEP_ENDED, 130.0, "was killed")
    assert [(event.kind, event.text) for event in rest] == [
        (EventKind.SWEEP_STARTED, "resumed: attempt 2"),
        (EventKind.SWEEP_ENDED, "all is done"),
    ]
    assert heard == rest  # nobody is told anew of what is long past
    with pytest.raises(KeyError), EventLog(run.dir).attempt(run, lambda: "not this"):
        raise KeyError("a bug")
    assert texts(run)[6:] == ["resumed: attempt 3", "stopped by KeyError: 'a bug'"]


def test_a_resume_of_a_killed_sweep_without_trials_left_notes_its_end(run: Run) -> None:
    append_event(run.dir.events, Event(100.0, EventKind.SWEEP_STARTED, "launched"))
    append_event(run.dir.events, Event(101.0, EventKind.TRIAL_STARTED, "started on node1", 0))
    for _ in range(2):
        finalize(run, Snapshot(run))
        assert texts(run)[2:] == ["complete at epoch 9/9, val_dice_mean 0.5000", "was killed"]


def test_an_end_of_a_trial_that_is_noted_after_that_of_its_attempt_is_no_kill(run: Run) -> None:
    for kind in (EventKind.SWEEP_STARTED, EventKind.TRIAL_STARTED, EventKind.SWEEP_ENDED):
        append_event(run.dir.events, Event(100.0, kind, "", 0 if kind == EventKind.TRIAL_STARTED else None))
    for _ in range(2):
        EventLog(run.dir).catch_up(run)
        assert [event.kind for event in read_events(run.dir.events)[3:]] == [EventKind.TRIAL_ENDED]


def test_the_end_in_a_folder_that_was_moved_is_noted_by_the_next_attempt(run: Run, tmp_path: Path) -> None:
    moved = RunDir(tmp_path.with_name("moved"))

    def fails() -> str:
        raise FileNotFoundError("journal.log")

    with EventLog(run.dir).attempt(run, fails):
        run.folder.rename(moved.path)
    with EventLog(moved).attempt(Run(moved, run.config, run.trials), lambda: "all is done"):
        pass
    texts_there = [event.text for event in read_events(moved.events)]
    assert texts_there == ["launched", "was killed", "resumed: attempt 2", "all is done"]


def test_nothing_is_made_up_for_a_run_that_older_code_began(run: Run) -> None:
    with EventLog(run.dir).attempt(run, lambda: "all is done"):
        pass
    assert texts(run) == ["launched", "all is done"]


def test_a_file_that_cannot_be_written_is_said_once_and_listeners_hear_all_the_same(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    run.dir.events.mkdir()
    heard: list[Event] = []
    events = EventLog(run.dir, heard.append)
    events.retried(1, "RuntimeError: x")
    events.retried(1, "RuntimeError: y")
    assert [event.text for event in heard] == [f"started again after RuntimeError: {name}" for name in "xy"]
    assert capsys.readouterr().out.count(f"{run.dir.events} is not up to date: ") == 1
