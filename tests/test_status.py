"""What status prints and watches, and what a sweep prints at its end: it needs nothing but RUN."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import verb
from synthetic_run import make_synthetic_run

from trainable.core.errors import InputError
from trainable.core.locks import lock_folder
from tune.__main__ import main
from tune.run.events import EventKind, read_events
from tune.run.results import Run, read_run
from tune.terminal.outcome import print_outcome
from tune.terminal.status import print_status

WIDTHS = (80, 120, 160)
ROOT = Path(__file__).parent.parent


def test_trials_that_nothing_drives_are_interrupted(
    synthetic_sweep: Path, driven: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    count = sum(trial.status == "running" for trial in driven.trials)
    assert count
    verb(["status", synthetic_sweep], monkeypatch)
    lines = capsys.readouterr().out.splitlines()
    assert f"{count} interrupted" in lines[0]
    assert not any("running" in line for line in lines)
    assert sum("interrupted" in line for line in lines) == count + 1
    assert lines[-1] == f"no process drives it now; go on with: voxtune resume {synthetic_sweep}"
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
    synthetic_sweep: Path, every: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["voxtune", "status", str(synthetic_sweep), "--watch", "--every", every])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    assert f"error: --every {every}: expected at least 0.1 seconds" in capsys.readouterr().err


@pytest.mark.skipif(not shutil.which("tmux"), reason="needs tmux")
def test_status_watches_in_a_real_terminal_until_the_sweep_ends(synthetic_sweep: Path) -> None:
    """In tmux, 80 columns and 24 rows: one screen, redrawn while a process holds the lock, then the table of all."""
    tmux = ["tmux", "-L", f"voxtune_test_{time.monotonic_ns()}"]
    command = f"cd {ROOT}; {sys.executable} -m tune status {synthetic_sweep} --watch --every 0.2; echo ended; exec cat"

    def screen() -> list[str]:
        done = subprocess.run([*tmux, "capture-pane", "-p"], capture_output=True, text=True, check=True)
        return done.stdout.splitlines()

    def wait_until_shown(text: str) -> list[str]:
        end = time.monotonic() + 60
        while not any(text in line for line in screen()):
            assert time.monotonic() < end, screen()
            time.sleep(0.1)
        return screen()

    with lock_folder(synthetic_sweep):
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
    synthetic_sweep: Path, width: int, name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = {"best": [synthetic_sweep], "show": [synthetic_sweep, 17], "check": ["brats"]}[name]
    verb([name, *words], monkeypatch, width)
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line) for line in lines if str(synthetic_sweep) not in line) <= width


def test_a_sweep_without_a_trial_has_a_head_and_no_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = make_synthetic_run(tmp_path / "a run", trials=0, space="demo", overrides=["study.trials=8"])
    verb(["status", run_dir], monkeypatch)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "a run: 0 of 8 trials started"
    assert lines[2:] == [
        "no score yet",
        "",
        f"no process drives it now; go on with: voxtune resume '{run_dir}'",
    ]
    verb(["importance", run_dir], monkeypatch)
    assert len(capsys.readouterr().out.splitlines()) == 2
    verb(["verify", run_dir], monkeypatch)
    assert capsys.readouterr().out.splitlines()[0] == "0 of 8 trials started"
    run = read_run(run_dir)
    with pytest.raises(InputError, match=f"see `voxtune status '{run_dir}'`"):
        run.best()
    with pytest.raises(InputError, match="has no trial 0; none has started"):
        run.trial(0)


def test_ctrl_c_ends_the_watching_and_says_that_the_sweep_is_not_affected(
    synthetic_sweep: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["voxtune", "status", str(synthetic_sweep), "--watch"])
    monkeypatch.setattr("tune.terminal.status.time.sleep", lambda _: signal.raise_signal(signal.SIGINT))
    with lock_folder(synthetic_sweep), pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 130
    assert capsys.readouterr().out == "no longer watched; the sweep itself is not affected\n"
