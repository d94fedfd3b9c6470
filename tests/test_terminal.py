"""What a sweep shows in a terminal: it fits, it says what happened, and it needs nothing but RUN."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers import SWEEP
from rich.console import Console
from synthetic_run import make_synthetic_run

from trainable.core.console import make_console
from trainable.core.errors import InputError
from trainable.core.locks import lock_folder
from trainable.training.case_scores import SCORE_COLUMNS
from tune.__main__ import main
from tune.run.confirm_report import table_text
from tune.run.curves import trial_curve
from tune.run.events import Event, EventKind, read_events
from tune.run.live_state import Activity, LiveState, read_live_state
from tune.run.results import Run, read_run
from tune.run.time_left import estimate_time_left
from tune.run.training_progress import TrainingProgress
from tune.run.trial_detail import trial_detail
from tune.run.verdict import Arm
from tune.spec.sweep_config import make_sweep_config
from tune.terminal.live_screen import SweepScreen
from tune.terminal.outcome import print_outcome
from tune.terminal.recipe_words import RecipeWords, short_recipe
from tune.terminal.sparkline import plot, sparkline
from tune.terminal.status import print_status
from tune.terminal.sweep_header import rough_range
from tune.terminal.sweep_screen import sweep_screen
from tune.terminal.text_lines import TICK, as_lines, flow, progress_bar
from tune.terminal.training_table import progress_lines
from tune.terminal.trial_lines import activity_text

ROOT = Path(__file__).parent.parent
WIDTHS = (80, 120, 160)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of 40 trials of 20 options, of which some run; nothing drives it."""
    return make_synthetic_run(tmp_path_factory.mktemp("terminal") / "run", trials=40, running=4)


@pytest.fixture
def driven(folder: Path) -> Run:
    with lock_folder(folder):
        return read_run(folder)


def drawn(run: Run, width: int, height: int, *, ascii_only: bool = False) -> list[str]:
    """The lines of the screen a minute after the last event."""
    live, events = read_live_state(run.dir.live), read_events(run.dir.events)
    console = Console(width=width, record=True, file=io.StringIO())
    now = events[-1].time + 60
    console.print(sweep_screen(run, live, events, width, height, now=now, ascii_only=ascii_only))
    return console.export_text().splitlines()


def verb(words: list[object], monkeypatch: pytest.MonkeyPatch, columns: int = 80) -> None:
    """Run a verb in this process, as if its output went into a file, `columns` wide."""
    monkeypatch.setattr(sys, "argv", ["voxtune", *map(str, words)])
    monkeypatch.setenv("COLUMNS", str(columns))
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 0


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
    assert lines[0].startswith("the first real run, the first")
    assert len(lines[0]) == 80
    assert lines[1].startswith("run: 40 of 40 trials")


def test_more_running_trials_than_rows_are_counted(driven: Run) -> None:
    one = next(trial for trial in driven.trials if trial.status == "running")
    running = [replace(one, number=number) for number in range(100, 130)]
    lines = drawn(replace(driven, trials=[*driven.trials, *running]), 80, 24)
    assert len(lines) <= 24
    assert any("more that run" in line for line in lines)


def test_trials_that_nothing_drives_are_interrupted(
    folder: Path, driven: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    count = sum(trial.status == "running" for trial in driven.trials)
    assert count
    verb(["status", folder], monkeypatch)
    lines = capsys.readouterr().out.splitlines()
    assert f"{count} interrupted" in lines[0]
    assert not any("running" in line for line in lines)
    assert sum("interrupted" in line for line in lines) == count + 1
    assert lines[-1] == f"no process drives it now; go on with: voxtune resume {folder}"
    assert max(map(len, lines[: lines.index("", 5)])) <= 80  # sentences below the table are not broken in a file
    assert not any(f" {trial.number} " in line for trial in driven.trials for line in lines if "200" in line)


def test_a_large_sweep_shows_the_best_and_the_last_trials_and_says_how_to_see_all(
    driven: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tune.terminal.status.MAX_TRIALS", 39)
    print_status(driven)
    lines = capsys.readouterr().out.splitlines()
    assert "40 trials in all: --all shows each" in lines
    ended = [event.trial for event in read_events(driven.dir.events) if event.kind == EventKind.TRIAL_ENDED]
    last = lines.index("the last 15 that have ended") + 2
    assert [int(line.split()[0].strip("*")) for line in lines[last : last + 15]] == ended[::-1][:15]
    print_status(driven, show_all=True)
    assert "--all" not in capsys.readouterr().out


@pytest.mark.parametrize("every", ["0", "-1", "nan"])
def test_a_watch_without_a_pause_is_refused(
    folder: Path, every: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["voxtune", "status", str(folder), "--watch", "--every", every])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    assert f"error: --every {every}: expected at least 0.1 seconds" in capsys.readouterr().err


@pytest.mark.skipif(not shutil.which("tmux"), reason="needs tmux")
def test_status_watches_in_a_real_terminal_until_the_sweep_ends(folder: Path) -> None:
    """In tmux, 80 columns and 24 rows: one screen, redrawn while a process holds the lock, then the table of all."""
    tmux = ["tmux", "-L", f"voxtune_test_{time.monotonic_ns()}"]
    command = f"cd {ROOT}; {sys.executable} -m tune status {folder} --watch --every 0.2; echo ended; exec cat"

    def screen() -> list[str]:
        done = subprocess.run([*tmux, "capture-pane", "-p"], capture_output=True, text=True, check=True)
        return done.stdout.splitlines()

    def wait_until_shown(text: str) -> list[str]:
        end = time.monotonic() + 60
        while not any(text in line for line in screen()):
            assert time.monotonic() < end, screen()
            time.sleep(0.1)
        return screen()

    with lock_folder(folder):
        subprocess.run([*tmux, "new-session", "-d", "-x", "80", "-y", "24", command], check=True)
        try:
            lines = wait_until_shown("/200 ")
        except BaseException:
            subprocess.run([*tmux, "kill-server"], check=False)
            raise
    try:
        assert lines[0].startswith("run: 40 of 40 trials")
        assert any("was needed" in line for line in lines)
        wait_until_shown("ended")
    finally:
        subprocess.run([*tmux, "kill-server"], check=False)


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


def test_the_end_says_what_it_cost_what_was_saved_and_what_was_found(
    driven: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    print_outcome(driven)
    text = capsys.readouterr().out
    winner, default = driven.best(), driven.default_trial
    assert default is not None
    assert default.number == 0
    stopped = [trial for trial in driven.trials if trial.status == "stopped early"]
    assert f"early stopping saved {sum(100 - trial.epoch for trial in stopped)} of " in text
    assert f"winner {winner.number:>9}" in text
    assert f"default {default.number:>8}" in text
    assert f"{(winner.score or 0) - (default.score or 0):+.4f}" in text
    assert text.count(f"{winner.score:.4f}") == 1
    steps = text[text.index("next:\n") :].splitlines()[1:]
    assert [line.split()[1] for line in steps if line.strip().startswith("voxtune")] == ["resume", "report", "confirm"]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["best", "show", "check"])
def test_tables_fit_the_columns_that_are_asked_for(
    folder: Path, width: int, name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = {"best": [folder], "show": [folder, 17], "check": ["brats"]}[name]
    verb([name, *words], monkeypatch, width)
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line) for line in lines if str(folder) not in line) <= width


def test_scores_of_cases_are_in_as_many_tables_as_fit_below_each_other() -> None:
    from trainable.evaluate import score_table  # here, because it imports torch

    regions = ("WT", "TC", "ET")
    values = {f"{kind}_{region}": 0.5 for kind in ("dice", "hd95", "sensitivity", "specificity") for region in regions}
    scores: Any = {f"BraTS2021_{number:05d}": {**values, "dice_mean": 0.5} for number in range(3)}
    parts = dict.fromkeys(scores, "test")
    wide, narrow = score_table(scores, parts), score_table(scores, parts, 80)
    assert max(map(len, wide.splitlines())) > 120
    assert max(map(len, narrow.splitlines())) <= 80
    assert narrow.count("0.5000") == wide.count("0.5000")
    assert narrow.count("mean test") == 3


def test_the_recipes_of_a_confirmation_fit_80_columns() -> None:
    means = dict.fromkeys(SCORE_COLUMNS, 0.81234)
    arms = [Arm(f"trial_{n:04d}", 12, means, dict.fromkeys(SCORE_COLUMNS, 0.0123), "", 0.9, -0.0123) for n in (3, 14)]
    found: Any = SimpleNamespace(val=SimpleNamespace(arms=arms, comparison=None), plan=SimpleNamespace(folds=0))
    lines = table_text(found).splitlines()
    assert max(map(len, lines)) <= 80
    assert len({len(line) for line in lines}) == 1
    assert lines[1].split()[2:] == ["0.8123", "0.8123", "0.8123", "0.8123", "+-", "0.0123", "0.9000", "-0.0123"]


def test_running_trainings_fit_80_columns() -> None:
    training = TrainingProgress("trial_0012 seed_1000002 fold_3", 1000, 999, 0.81234, 998, 86399.0)
    [heading, line] = as_lines(progress_lines([training]), 80)
    assert line.plain == " 999/1000     998  0.8123 23:59:59 running  trial_0012 seed_1000002 fold_3"
    assert heading.plain.index("training") == line.plain.index("trial_0012")


def test_show_says_why_a_trial_was_stopped_and_what_was_needed(
    folder: Path, driven: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = next(trial for trial in driven.trials if trial.status == "stopped early" and len(trial.rungs) == 2)
    verb(["show", folder, stopped.number], monkeypatch)
    text = capsys.readouterr().out
    rung = stopped.rungs[15]
    assert f"stopped early at epoch 15 of 100: {rung.value:.4f}, {rung.needed:.4f} was needed" in text
    assert f"    15  {rung.value:.4f}  {rung.needed:.4f} {rung.among:>6}  stopped" in text
    for path in (driven.dir.trial(stopped.number).config, driven.dir.trial(stopped.number).stdout):
        assert str(path) in text
    assert f"epoch 15  val Dice {trial_curve(driven, stopped)[15]:.4f}".replace("  ", " ") in text
    detail = trial_detail(driven, stopped.number)
    assert set(detail.differing) == set(RecipeWords(driven).differing(stopped))
    with pytest.raises(InputError, match="has no trial 99"):
        trial_detail(driven, 99)


def test_a_failed_trial_shows_its_error(tmp_path: Path) -> None:
    run = read_run(make_synthetic_run(tmp_path / "run", trials=8, failed_every=6, space="demo"))
    failed = next(trial for trial in run.trials if trial.status == "failed")
    detail = trial_detail(run, failed.number)
    assert detail.reason == f"failed at epoch 0 of 9: {failed.error}"
    assert detail.files["traceback"] == str(run.dir.trial(failed.number).error)
    assert detail.curve == {}


def test_the_curves_of_a_sweep_with_a_cost_are_read_from_its_files(tmp_path: Path) -> None:
    run = read_run(make_synthetic_run(tmp_path / "run", trials=4, space="demo"))
    trial = run.trials[0]
    objective = run.config.objective.model_copy(update={"metric": ["val_dice_mean", "seconds"]})
    with_cost = replace(run, config=run.config.model_copy(update={"objective": objective}))
    assert list(trial.intermediate) == list(range(1, 10))
    assert trial_curve(with_cost, replace(trial, intermediate={})) == pytest.approx(trial.intermediate)


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


def test_a_sparkline_has_a_block_per_column_and_ticks_at_the_rungs_ahead() -> None:
    curve = {1: 0.0, 2: 0.5, 3: 1.0}
    assert sparkline(curve, 9, 9, (0.0, 1.0), (1, 3, 6)) == f"▁▅█  {TICK}   "
    assert sparkline({}, 9, 9, (0.0, 1.0), (3,)) == f"  {TICK}      "
    assert sparkline({epoch: epoch / 100 for epoch in range(1, 101)}, 100, 8, (0.0, 1.0)) == "▂▃▄▅▆▇██"
    assert sparkline({5: 0.3}, 100, 4, (0.3, 0.3)) == "▅   "


def test_a_plot_has_its_scale_and_fits() -> None:
    lines = plot({5: 0.2, 10: 0.8}, 20, 40, 4, (5,))
    assert len(lines) == 4
    assert max(map(len, lines)) <= 40
    assert lines[0].startswith("0.8000 ")
    assert lines[-1].startswith("0.2000 ")
    assert lines[0].count("█") == 1
    assert all(TICK in line for line in lines[:-1])


def test_a_recipe_in_few_words() -> None:
    recipe = {"optimizer": "sgd", "lr": 0.0058, "scheduler": "step", "step_size": 40, "step_gamma": 0.1}
    recipe |= {"loss_weights": [2.0, 1.0], "residual": True, "deep_supervision": False, "weight_decay": 1e-05}
    expected = "sgd lr=.0058 step size=40 gamma=.1 w=2:1 residual no deep_supervision wd=1e-5"
    assert short_recipe(recipe) == expected


def test_only_options_that_differ_from_the_default_are_shown(driven: Run) -> None:
    words = RecipeWords(driven)
    assert words.short(driven.trials[0]) == "the default recipe"
    other = driven.trials[1]
    base = driven.config.base_config()
    assert words.differing(other)
    assert all(getattr(base, name) != value for name, value in words.differing(other).items())
    changed = replace(driven.trials[0], values={**driven.trials[0].values, "lr": 0.5})
    assert words.short(changed) == "lr=.5"


def test_what_a_trial_does_is_said_in_the_columns_there_are() -> None:
    activity = Activity(3, "training", 5, 50, 200, 6.51)
    assert activity_text(activity, 30) == f"{progress_bar(0.25, 8)} 50/200 6.51 patches/s"
    assert activity_text(activity, 18).endswith(" 50/200 6.51/s")
    assert activity_text(replace(activity, phase="validating", done=3, total=20), 18) == "validates 3/20"
    assert activity_text(Activity(3, "starting"), 18) == "starts"
    assert progress_bar(0.5, 4) == "██  "
    assert progress_bar(2.0, 4) == "████"


def test_parts_flow_into_lines_without_being_split() -> None:
    assert flow(["one two", "three", "four"], 12, between=", ") == ["one two", "  three", "  four"]
    assert flow(["one two", "three", "four"], 13, between=", ") == ["one two", "  three, four"]
    assert flow(["a" * 30], 10) == ["a" * 9 + "…"]


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [
        (2901, 16503, "0.8 to 4.6 h"),
        (30, 7100, "at most 118 min"),
        (40, 110, "40 to 110 s"),
        (7150, 7210, "about 2.0 h"),
        (90000, 300000, "1.0 to 3.5 days"),
        (0, 0.4, "at most 0 s"),
    ],
)
def test_a_range_of_time_has_one_unit(low: float, high: float, text: str) -> None:
    assert rough_range(low, high) == text


def test_a_console_off_a_terminal_is_as_wide_as_columns_says(monkeypatch: pytest.MonkeyPatch) -> None:
    for columns, width in (("80", 80), ("0", 150), ("", 150), ("wide", 150)):
        monkeypatch.setenv("COLUMNS", columns)
        assert make_console().width == width


def test_a_sweep_without_a_trial_has_a_screen(tmp_path: Path) -> None:
    make_synthetic_run(tmp_path / "run", trials=1, space="demo")
    run = replace(read_run(tmp_path / "run"), trials=[], driven=True)
    live = LiveState(1.0, 0.0, "node1", 1, 2)
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(sweep_screen(run, live, [], 80, 24, now=2.0))
    assert "no score yet" in console.export_text()
    assert make_sweep_config(SWEEP).fixed("epochs") == 9
