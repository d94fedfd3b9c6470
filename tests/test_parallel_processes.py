"""Work in several processes at the same time: results, failures, and nothing that is left running."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from trainable.core.locks import process_exists
from tune.driver.measurement.parallel_processes import ProcessFailed, WaitForAll, run_together


def wait_and_add(number: int, wait_for_all: WaitForAll) -> tuple[int, float, float]:
    """Process 1 is late; returns when the wait began and ended."""
    time.sleep(0.5 * number)
    before = time.monotonic()
    wait_for_all()
    return number + 10, before, time.monotonic()


def fail_in_the_last(number: int, wait_for_all: WaitForAll) -> int:
    if number == 1:
        raise ValueError("injected")
    wait_for_all()
    return number


def die_in_the_last(number: int, wait_for_all: WaitForAll) -> int:
    if number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    wait_for_all()
    return number


def never_come(number: int, wait_for_all: WaitForAll) -> int:
    time.sleep(60)
    return number


def test_all_begin_together_and_the_results_come_in_order() -> None:
    (first, _, started), (second, late, other) = run_together(wait_and_add, [0, 1], timeout=60)
    assert (first, second) == (10, 11)
    assert min(started, other) >= late


@pytest.mark.parametrize(
    ("work", "error_type", "message"),
    [
        (fail_in_the_last, "ValueError", "ValueError: injected"),
        (die_in_the_last, "EOFError", "died without a result"),
        (never_come, "TimeoutError", "no result after 3 s"),
    ],
)
def test_the_first_failure_ends_all_though_others_wait(work, error_type: str, message: str) -> None:
    started = time.monotonic()
    with pytest.raises(ProcessFailed, match=message) as failed:
        run_together(work, [0, 1], timeout=3 if work is never_come else 60)
    assert failed.value.error_type == error_type
    assert time.monotonic() - started < 40


PARENT = """
import os, sys, time
from pathlib import Path
from tune.driver.measurement.parallel_processes import run_together

def work(folder, wait_for_all):
    Path(folder, str(os.getpid())).touch()
    time.sleep(60)

if __name__ == "__main__":
    run_together(work, [sys.argv[1]] * 2, 60)
"""


def test_the_processes_end_with_a_parent_that_was_killed(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    (tmp_path / "pids").mkdir()
    parent = subprocess.Popen([sys.executable, str(script), str(tmp_path / "pids")])
    end = time.monotonic() + 60
    while len(pids := [int(path.name) for path in (tmp_path / "pids").iterdir()]) < 2:
        assert time.monotonic() < end
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    while any(process_exists(pid) for pid in pids):
        assert time.monotonic() < end
        time.sleep(0.05)
