from pathlib import Path

from tune.run.effort import elapsed_seconds
from tune.run.events import Event, EventKind, append_event, read_events
from tune.run.live_state import Activity, LiveState, read_live_state, write_live_state


def test_events_come_back_in_order_without_half_a_line(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    assert read_events(path) == []
    events = [
        Event(1.0, EventKind.SWEEP_STARTED, "launched"),
        Event(2.5, EventKind.TRIAL_STARTED, "started", 0, "node1", (0, 1)),
        Event(9.0, EventKind.TRIAL_ENDED, "complete", 0, status="complete"),
    ]
    for event in events:
        append_event(path, event)
    with path.open("a") as file:
        file.write('{"time": 10.0, "kind": "trial_st')
    assert read_events(path) == events
    append_event(path, events[0])
    append_event(path, events[1])
    assert read_events(path) == [*events, *events[:2]]


def test_the_time_between_two_attempts_does_not_count() -> None:
    events = [
        Event(100.0, EventKind.SWEEP_STARTED, "launched"),
        Event(130.0, EventKind.TRIAL_STARTED, "started", 0),
        Event(1000.0, EventKind.SWEEP_STARTED, "resumed"),
        Event(1007.0, EventKind.SWEEP_ENDED, "ended"),
    ]
    assert elapsed_seconds(events) == 37.0
    assert elapsed_seconds([]) is None


def test_a_live_state_comes_back_and_a_damaged_one_is_none(tmp_path: Path) -> None:
    path = tmp_path / "live.json"
    assert read_live_state(path) is None
    state = LiveState(5.0, 1.0, "head", 7, 2, (Activity(3, "training", 2, 10, 40, 51.5, 4.9, "node1", (1,)),))
    write_live_state(path, state)
    assert read_live_state(path) == state
    path.write_text("{")
    assert read_live_state(path) is None
