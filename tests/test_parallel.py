"""Work in the background, and what an import of it costs."""

from __future__ import annotations

import contextlib
import math
import os
import subprocess
import sys
import threading
import weakref
from pathlib import Path

import pytest

from trainable.core import parallel
from trainable.core.parallel import BackgroundWorker, cpu_quota


def test_tasks_are_done_one_after_the_other_and_waited_for_at_the_end() -> None:
    done: list[int] = []
    free = threading.Event()
    with BackgroundWorker() as worker:
        worker.start(lambda: done.append(free.wait(10)))
        worker.check()  # it runs: nothing to raise, and it is not waited for
        assert done == []
        free.set()
        worker.start(lambda: done.append(2))
    assert done == [True, 2]


@pytest.mark.parametrize("error", [ValueError("of the task"), SystemExit(0)])
def test_what_a_task_raises_is_raised_again_in_the_thread_that_goes_on(error: BaseException) -> None:
    def task() -> None:
        raise error

    with pytest.raises(type(error)), BackgroundWorker() as worker:  # noqa: PT012
        worker.start(task)
        while True:
            worker.check()
    with pytest.raises(type(error)), BackgroundWorker() as worker:  # noqa: PT012
        worker.start(task)
        worker.start(lambda: None)


def test_what_a_task_raised_replaces_what_ended_the_context() -> None:
    def task() -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space") as caught, BackgroundWorker() as worker:  # noqa: PT012
        worker.start(task)
        raise KeyboardInterrupt
    assert isinstance(caught.value.__context__, KeyboardInterrupt)


def test_a_task_that_raised_keeps_nothing_alive() -> None:
    class Large:
        pass

    def work() -> weakref.ref[Large]:
        large = Large()
        kept = weakref.ref(large)

        def task() -> None:
            raise ValueError(str(large)[:0])

        with BackgroundWorker() as worker:
            worker.start(task)
            with contextlib.suppress(ValueError):
                worker.wait()
        return kept

    assert work()() is None


def test_only_a_progress_bar_imports_rich() -> None:
    """A trial shows none, and its start would wait for the import."""
    code = "import sys, trainable.core.parallel, trainable.core.progress_bar; print('rich' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


@pytest.mark.parametrize(
    ("membership", "files", "quota"),
    [
        ("0::/job/task\n", {"job/cpu.max": "150000 100000", "job/task/cpu.max": "max 100000"}, 1.5),
        ("0::/\n", {"cpu.max": "400000 100000"}, 4.0),
        ("0::/host/path\n", {"cpu.max": "200000 100000"}, 2.0),  # a container shows its own group as the root
        ("4:cpu,x:/a\n0::/\n", {"cpu,x/a/cpu.cfs_quota_us": "50000", "cpu,x/a/cpu.cfs_period_us": "100000"}, 0.5),
        ("4:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, math.inf),
        ("5:memory:/\n", {"memory/cpu.max": "100000 100000"}, math.inf),
        ("", {}, math.inf),
    ],
)  # fmt: skip
def test_the_cpu_quota_is_the_lowest_of_the_control_groups(
    membership: str, files: dict[str, str], quota: float, tmp_path: Path
) -> None:
    for name, text in files.items():
        (tmp_path / "root" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "root" / name).write_text(text + "\n")
    (tmp_path / "cgroup").write_text(membership)
    assert cpu_quota(tmp_path / "root", tmp_path / "cgroup") == quota


def test_cores_are_those_that_the_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    one = min(os.sched_getaffinity(0))
    code = "from trainable.core.parallel import cores; print(cores())"
    done = subprocess.run(["taskset", "-c", str(one), sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stdout == b"1\n"
    monkeypatch.setattr(parallel, "cpu_quota", lambda: 0.5)
    assert parallel.cores() == 1
