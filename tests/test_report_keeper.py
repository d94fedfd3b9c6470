"""RUN/report.html while a sweep runs: a process beside the trials, which can do no harm."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tune.driver.recording import report_keeper
from tune.driver.recording.report_keeper import ReportKeeper
from tune.run.run_dir import RunDir


@pytest.fixture
def report_is(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """A function that puts these lines of Python in place of `voxtune report`."""

    def replace(code: str) -> None:
        code = "import os, sys, time\n" + code
        monkeypatch.setattr(report_keeper, "report_command", lambda run_dir, images: [sys.executable, "-c", code])

    monkeypatch.setattr(report_keeper, "PERIOD_SECONDS", 0.0)
    return replace


@pytest.fixture
def keeper(tmp_path: Path) -> Iterator[ReportKeeper]:
    with ReportKeeper(RunDir(tmp_path), wanted=True) as keeper:
        yield keeper


def step(keeper: ReportKeeper, times: int) -> None:
    """Let `times` reports end."""
    end = time.monotonic() + 60
    while times and time.monotonic() < end:
        running = keeper.process is not None
        keeper.on_step_end(0, [])
        times -= running and keeper.process is None
        time.sleep(0.01)
    assert not times


def test_reports_are_written_one_after_the_other_with_the_lowest_priority_and_no_gpu(
    report_is: Callable[[str], None], keeper: ReportKeeper, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log"
    report_is(
        f"time.sleep(0.3); print(os.getpriority(os.PRIO_PROCESS, 0), repr(os.environ['CUDA_VISIBLE_DEVICES']), "
        f"file=open({str(log)!r}, 'a'))"
    )
    step(keeper, 2)
    assert log.read_text().splitlines() == ["19 ''"] * 2
    assert capsys.readouterr().out == ""


def test_a_report_that_fails_is_said_once_and_tried_again(
    report_is: Callable[[str], None], keeper: ReportKeeper, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report_is("print('error: no such thing', file=sys.stderr); sys.exit(2)")
    step(keeper, 2)
    assert capsys.readouterr().out == f"{tmp_path}/report.html is not up to date: error: no such thing\n"


def test_a_report_that_takes_too_long_or_outlives_the_sweep_is_ended(
    report_is: Callable[[str], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    report_is("time.sleep(600)")
    with ReportKeeper(RunDir(tmp_path), wanted=True) as keeper:
        monkeypatch.setattr(report_keeper, "TIMEOUT_SECONDS", 0.2)
        step(keeper, 1)
        assert "is not up to date: it took over 0 s" in capsys.readouterr().out
        keeper.on_step_end(0, [])
        assert keeper.process is not None
        last = keeper.process.pid
    with pytest.raises(ProcessLookupError):
        os.kill(last, 0)


def test_no_report_is_started_if_none_is_wanted(report_is: Callable[[str], None], tmp_path: Path) -> None:
    report_is("")
    with ReportKeeper(RunDir(tmp_path), wanted=False) as keeper:
        keeper.on_step_end(0, [])
        assert keeper.process is None
