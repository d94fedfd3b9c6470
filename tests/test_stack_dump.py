"""The stacks that a trial's process writes before the driver ends it."""

from __future__ import annotations

import time
from pathlib import Path

from tune.driver.processes.stack_dump import dump_stacks_of_hang


def hang_here() -> None:
    time.sleep(0.8)


def test_the_stacks_of_a_silent_trial_are_appended_to_its_stdout_log(tmp_path: Path) -> None:
    log = tmp_path / "run" / "trials" / "0003" / "stdout.log"
    log.parent.mkdir(parents=True)
    log.write_text("epoch 1\n")
    with dump_stacks_of_hang(log, report_timeout=0.4):
        hang_here()
    lines = log.read_text().splitlines()
    assert lines[0] == "epoch 1"
    assert lines[1].startswith("Timeout (0:00:00.36")
    assert any("in hang_here" in line for line in lines)


def test_nothing_is_written_if_the_trial_reports_in_time_and_after_its_end(tmp_path: Path) -> None:
    log = tmp_path / "trials" / "0003" / "stdout.log"
    with dump_stacks_of_hang(log, report_timeout=1.5) as dump:
        assert dump is not None
        for _ in range(4):
            time.sleep(0.4)
            dump.restart()
    time.sleep(1.4)
    assert log.read_text() == ""


def test_nothing_is_written_without_a_timeout_or_without_the_run_s_folder(tmp_path: Path) -> None:
    elsewhere = tmp_path / "not here" / "trials" / "0003" / "stdout.log"
    for log, timeout in ((elsewhere, 0.1), (tmp_path / "trials" / "0003" / "stdout.log", None)):
        with dump_stacks_of_hang(log, timeout) as dump:
            assert dump is None
            time.sleep(0.3)
    assert list(tmp_path.iterdir()) == []
