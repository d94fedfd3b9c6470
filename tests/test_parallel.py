"""Work behind other work, folders that one process holds, files that are never half written."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import weakref
from pathlib import Path

import pytest

from trainable.core.errors import InputError
from trainable.core.files import atomic_write_text, lock_folder, scratch_dir
from trainable.core.workers import BackgroundWorker


def test_a_held_folder_is_refused_until_it_is_let_go(tmp_path: Path) -> None:
    with lock_folder(tmp_path / "out"):
        with (
            pytest.raises(InputError, match=rf"out is in use by process {os.getpid()} on .* since"),
            lock_folder(tmp_path / "out"),
        ):
            pass
        (tmp_path / "out" / "result").touch()
    with lock_folder(tmp_path / "out"):
        pass
    assert (tmp_path / "out" / "result").exists()


def test_the_scratch_folders_of_killed_processes_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    code = "import os, trainable.core.files as p\nwith p.scratch_dir('mine-'): os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", code], check=False, env={**os.environ, "TMPDIR": str(tmp_path)})
    (killed,) = tmp_path.iterdir()
    (tmp_path / "other-1").mkdir()
    with scratch_dir("mine-") as one, scratch_dir("mine-") as other:
        assert sorted(tmp_path.iterdir()) == sorted([one, other, tmp_path / "other-1"])
        assert killed not in (one, other)
    assert list(tmp_path.iterdir()) == [tmp_path / "other-1"]


def test_a_new_folder_that_nothing_came_of_is_removed(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), lock_folder(tmp_path / "new" / "out"):
        raise ZeroDivisionError
    assert not (tmp_path / "new" / "out").exists()
    (tmp_path / "old").mkdir()
    with lock_folder(tmp_path / "old"):
        pass
    assert (tmp_path / "old").exists()


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "split.json"
    path.write_text("old")
    with path.open() as reader:
        atomic_write_text(path, "new")
        assert reader.read() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_pieces_behind_are_done_one_after_the_other_and_waited_for_at_the_end() -> None:
    done: list[int] = []
    free = threading.Event()
    with BackgroundWorker() as behind:
        behind.start(lambda: done.append(free.wait(10)))
        behind.check()  # under way: nothing to say, and not waited for
        assert done == []
        free.set()
        behind.start(lambda: done.append(2))
    assert done == [True, 2]


@pytest.mark.parametrize("error", [ValueError("of the piece"), SystemExit(0)])
def test_what_a_piece_raises_comes_up_in_the_thread_that_goes_on(error: BaseException) -> None:
    def piece() -> None:
        raise error

    with pytest.raises(type(error)), BackgroundWorker() as behind:  # noqa: PT012
        behind.start(piece)
        while True:
            behind.check()
    with pytest.raises(type(error)), BackgroundWorker() as behind:  # noqa: PT012
        behind.start(piece)
        behind.start(lambda: None)


def test_what_a_piece_raised_stands_before_what_ended_the_context() -> None:
    def piece() -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space") as found, BackgroundWorker() as behind:  # noqa: PT012
        behind.start(piece)
        raise KeyboardInterrupt
    assert isinstance(found.value.__context__, KeyboardInterrupt)


def test_a_piece_that_raised_keeps_nothing_alive() -> None:
    class Large:
        pass

    def work() -> weakref.ref[Large]:
        large = Large()
        kept = weakref.ref(large)

        def piece() -> None:
            raise ValueError(str(large)[:0])

        with BackgroundWorker() as behind:
            behind.start(piece)
            with contextlib.suppress(ValueError):
                behind.wait()
        return kept

    assert work()() is None
