"""Work in the background, and what an import of it costs."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import weakref

import pytest

from trainable.core.parallel import BackgroundWorker


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
