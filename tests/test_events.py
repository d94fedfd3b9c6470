from pathlib import Path

import pytest
from synthetic_run import START, make_synthetic_run

from tune.run.effort import elapsed_seconds, events_lost, measure_effort
from tune.run.events import Event, EventKind, append_event, has_ended, is_damaged, read_events
from tune.run.live_state import Activity, LiveState, read_live_state, write_live_state
from tune.run.results import Run, read_run
from tune.terminal.sweep_header import elapsed_text


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
    assert not is_damaged(path)  # a crash may do that
    with path.open("a") as file:
        file.write("garbage\n")
    assert is_damaged(path)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A sweep of 16 trials, of which some have ended in each way, and some have not."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    return read_run(make_synthetic_run(folder, trials=16, running=2, failed_every=8, cases=2, gpus=2))


def test_the_time_between_two_attempts_does_not_count(run: Run) -> None:
    first, second = Event(100.0, EventKind.SWEEP_STARTED, "launched"), Event(1000.0, EventKind.SWEEP_STARTED, "resumed")
    starts = [Event(130.0, EventKind.TRIAL_STARTED, "started", number) for number in range(16)]
    end = Event(1007.0, EventKind.SWEEP_ENDED, "ended")
    late = Event(1007.0, EventKind.TRIAL_ENDED, "noted after the end", 3)
    assert elapsed_seconds(run, [first, *starts, second]) == 30.0
    assert elapsed_seconds(run, [first, *starts, second], seen=1005.0) == 35.0
    assert elapsed_seconds(run, [first, *starts, second, end], seen=2000.0) == 37.0
    assert elapsed_seconds(run, [first, *starts, second, end, late], seen=2000.0) == 37.0


def test_the_time_of_a_run_that_noted_no_events_at_first_is_not_known(run: Run) -> None:
    resumed = [Event(1000.0, EventKind.SWEEP_STARTED, "resumed"), Event(1001.0, EventKind.TRIAL_STARTED, "goes on", 3)]
    assert elapsed_seconds(run, []) is None
    assert elapsed_seconds(run, resumed) is None
    assert measure_effort(run).elapsed == read_events(run.dir.events)[-1].time - START
    write_live_state(run.dir.live, LiveState(START + 1e6, START, "node1", 1))
    assert measure_effort(run).elapsed == 1e6


def test_the_effort_of_a_run_adds_up(run: Run) -> None:
    """By hand, from each trial's own numbers."""
    effort, epochs = measure_effort(run), run.config.fixed("epochs")
    stopped = [trial for trial in run.trials if trial.status == "stopped early"]
    failed = [trial for trial in run.trials if trial.status in ("failed", "out of memory")]
    complete = [trial for trial in run.trials if trial.status == "complete"]
    going = [trial for trial in run.trials if trial.status == "interrupted"]
    assert stopped
    assert failed
    assert going
    assert len(run.trials) == len(stopped + failed + complete + going)
    assert effort.trial_seconds == sum(trial.seconds for trial in run.trials)
    assert effort.gpu_hours == pytest.approx(sum(trial.gpu_hours for trial in run.trials))
    assert effort.stopped_seconds == sum(trial.seconds for trial in stopped)
    assert effort.epochs == sum(trial.epoch for trial in run.trials)
    assert effort.saved_epochs == sum(epochs - trial.epoch for trial in stopped)
    assert effort.full_epochs == epochs * len(stopped + complete) + sum(trial.epoch for trial in failed)
    assert effort.failed_seconds == sum(trial.seconds for trial in failed)


@pytest.mark.parametrize(
    ("kinds", "ended"),
    [("", False), ("s", False), ("ste", True), ("stet", True), ("stes", False), ("t", False)],
)
def test_an_attempt_has_ended_also_if_an_end_of_a_trial_is_noted_later(kinds: str, ended: bool) -> None:
    of = {"s": EventKind.SWEEP_STARTED, "e": EventKind.SWEEP_ENDED, "t": EventKind.TRIAL_ENDED}
    assert has_ended([Event(1.0, of[kind], "") for kind in kinds]) == ended


def test_a_live_state_comes_back_and_a_damaged_one_is_none(tmp_path: Path) -> None:
    path = tmp_path / "live.json"
    assert read_live_state(path) is None
    state = LiveState(5.0, 1.0, "head", 7, 2, (Activity(3, "training", 2, 10, 40, 51.5, 4.9, "node1", (1,)),))
    write_live_state(path, state)
    assert read_live_state(path) == state
    path.write_text("{")
    assert read_live_state(path) is None


@pytest.mark.parametrize("damage", ["second half lost", "first half lost", "garbage", "line overwritten"])
def test_damaged_events_give_no_elapsed_time_and_say_so(tmp_path: Path, damage: str) -> None:
    run = read_run(make_synthetic_run(tmp_path / "run", trials=12, cases=1, gpus=1))
    assert elapsed_text(run, None, read_events(run.dir.events), START).startswith("elapsed ")
    text = run.dir.events.read_text()
    half = len(text) // 2
    damaged = {
        "second half lost": text[:half],
        "first half lost": text[half:],
        "garbage": text + "\0\0garbage\n" + text.splitlines()[-1] + "\n",
        "line overwritten": text.replace('"kind": "trial_started"', '"kind"##', 1),
    }
    run.dir.events.write_text(damaged[damage])
    events = read_events(run.dir.events)
    assert events_lost(run, events)
    assert measure_effort(run).elapsed is None
    assert elapsed_text(run, None, events, START) == "events.jsonl is damaged: elapsed time not known"
