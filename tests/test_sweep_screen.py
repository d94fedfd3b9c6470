"""The live screen of a sweep: it fits any width and height, and says what runs, what is best and what happened."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from synthetic_run import make_synthetic_run

from tune.analysis.time_left import estimate_time_left
from tune.run.events import Event, EventKind, read_events
from tune.run.live_state import LiveState, read_live_state
from tune.run.results import Run, read_run
from tune.terminal.live_screen import SweepScreen
from tune.terminal.recipe_words import RecipeWords
from tune.terminal.sweep_screen import sweep_screen

WIDTHS = (80, 120, 160)


def drawn(run: Run, width: int, height: int, *, ascii_only: bool = False) -> list[str]:
    """The lines of the screen a minute after the last event."""
    live, events = read_live_state(run.dir.live), read_events(run.dir.events)
    console = Console(width=width, record=True, file=io.StringIO())
    now = events[-1].time + 60
    console.print(sweep_screen(run, live, events, width, height, now=now, ascii_only=ascii_only))
    return console.export_text().splitlines()


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("height", [12, 24, 60])
def test_the_screen_fits_and_says_what_runs_what_is_best_and_what_happened(
    driven: Run, width: int, height: int
) -> None:
    lines = drawn(driven, width, height)
    assert len(lines) <= height
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    running = [trial for trial in driven.trials if trial.status == "running"]
    assert len(running) >= 2
    activities = {activity.number: activity for activity in read_live_state(driven.dir.live).activities}  # type: ignore[union-attr]
    for trial in running:
        assert any(f"{activities[trial.number].done}/200" in line for line in lines if f" {trial.number} " in line)
    best = driven.best()
    assert f"best {best.score:.4f} (trial {best.number}, complete)" in text
    assert "40 of 40 trials" in text
    assert " GPU hours" in text
    assert " left" in text
    if height >= 24:
        assert f"*{best.number} 100/100 {best.score:.4f}" in text
        assert "was needed" in text


def test_the_screen_in_ascii_has_the_same_lines_without_unicode(driven: Run) -> None:
    lines = drawn(driven, 80, 24, ascii_only=True)
    assert all(line.isascii() for line in lines)
    assert [len(line) for line in lines] == [len(line) for line in drawn(driven, 80, 24)]


def test_the_note_of_a_launch_is_the_first_line(driven: Run) -> None:
    config = driven.config.with_record(note="the first real run, " * 10)
    lines = drawn(replace(driven, config=config), 80, 24)
    assert lines[0].startswith("note: the first real run, the first")
    assert len(lines[0]) == 80
    assert lines[1].startswith("run: 40 of 40 trials")


def test_more_running_trials_than_rows_are_counted(driven: Run) -> None:
    one = next(trial for trial in driven.trials if trial.status == "running")
    running = [replace(one, number=number) for number in range(100, 130)]
    lines = drawn(replace(driven, trials=[*driven.trials, *running]), 80, 24)
    assert len(lines) <= 24
    assert any("more that run" in line for line in lines)


def test_a_sweep_without_a_trial_has_a_screen(tmp_path: Path) -> None:
    make_synthetic_run(tmp_path / "run", trials=1, space="demo")
    run = replace(read_run(tmp_path / "run"), trials=[], driven=True)
    live = LiveState(1.0, 0.0, "node1", 1, 2)
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(sweep_screen(run, live, [], 80, 24, now=2.0))
    assert "no score yet" in console.export_text()


def test_off_a_terminal_each_event_is_one_unbroken_line(driven: Run, capsys: pytest.CaptureFixture[str]) -> None:
    screen = SweepScreen(driven.config, 40)
    screen.refresh(driven, None)
    reason = "out of memory at epoch 0/100, no score: " + "a long reason " * 20
    screen.event(Event(0.0, EventKind.TRIAL_STARTED, "started", 5, "node1", (0,)))
    screen.event(Event(1.0, EventKind.TRIAL_ENDED, reason, 5, status="out of memory"))
    screen.event(Event(2.0, EventKind.TRIAL_STOPPED, "stopped at epoch 5: 0.1, 0.2 was needed", 6))
    screen.event(Event(2.0, EventKind.TRIAL_ENDED, "stopped early at epoch 5/100", 6, status="stopped early"))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert f"trial 5 {reason}  |  " in lines[0]
    assert "of 40 trials ended, best " in lines[0]
    assert "trial 6 stopped at epoch 5: 0.1, 0.2 was needed  |  " in lines[1]


def test_only_options_that_differ_from_the_default_are_shown(driven: Run) -> None:
    words = RecipeWords(driven)
    assert words.short(driven.trials[0]) == "the default recipe"
    other = driven.trials[1]
    base = driven.config.base_config()
    assert words.differing(other)
    assert all(getattr(base, name) != value for name, value in words.differing(other).items())
    changed = replace(driven.trials[0], values={**driven.trials[0].values, "lr": 0.5})
    assert words.short(changed) == "lr=.5"


def test_the_time_that_is_left_is_in_the_range(tmp_path: Path) -> None:
    """Told after 50 of 150 trials, on 8 GPUs; what the rest took is known."""
    run = read_run(make_synthetic_run(tmp_path / "run", trials=150, cases=1))
    events = read_events(run.dir.events)
    begun = next(event.time for event in events if event.kind == EventKind.TRIAL_STARTED and event.trial == 50)
    left = estimate_time_left(replace(run, trials=run.trials[:50]), slots=8)
    assert left is not None
    low, high = left
    assert low <= events[-1].time - begun <= high
    assert high < 6 * low
    assert estimate_time_left(replace(run, trials=[]), slots=8) is None
    first = estimate_time_left(replace(run, trials=run.trials[:1]), slots=8)
    assert first is not None
    assert first[0] < low
    assert first[1] > high
