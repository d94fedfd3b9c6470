"""Folders that one process holds, and files that are never half written."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from trainable.config import InputError
from trainable.parallel import locked, write_whole


def test_a_held_folder_is_refused_until_it_is_let_go(tmp_path: Path) -> None:
    with locked(tmp_path / "out"):
        with (
            pytest.raises(InputError, match=rf"out is in use by process {os.getpid()} on .* since"),
            locked(tmp_path / "out"),
        ):
            pass
        (tmp_path / "out" / "result").touch()
    with locked(tmp_path / "out"):
        pass
    assert (tmp_path / "out" / "result").exists()


def test_a_new_folder_that_nothing_came_of_is_removed(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), locked(tmp_path / "new" / "out"):
        raise ZeroDivisionError
    assert not (tmp_path / "new" / "out").exists()
    (tmp_path / "old").mkdir()
    with locked(tmp_path / "old"):
        pass
    assert (tmp_path / "old").exists()


def test_a_killed_process_s_children_do_not_hold_its_folder(tmp_path: Path) -> None:
    """The processes that read outlive a kill -9 of their parent by seconds."""
    script = (
        "import multiprocessing, os, signal, time; from pathlib import Path; from trainable.parallel import locked\n"
        f"with locked(Path({str(tmp_path)!r})):\n"
        "    child = multiprocessing.get_context('fork').Process(target=time.sleep, args=(60,)); child.start()\n"
        f"    Path({str(tmp_path / 'child')!r}).write_text(str(child.pid)); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", script], check=False)
    child = int((tmp_path / "child").read_text())
    assert done.returncode == -signal.SIGKILL
    try:
        os.kill(child, 0)  # it lives
        with locked(tmp_path):
            pass
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "split.json"
    path.write_text("old")
    with path.open() as reader:
        write_whole(path, "new")
        assert reader.read() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]
