"""Folders locked by one process, temporary folders of killed processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from trainable.core.errors import InputError
from trainable.core.locks import hold_shared_lock, is_locked, lock_folder, scratch_dir, wait_for_exclusive_lock


def test_a_locked_folder_is_refused_until_it_is_unlocked(tmp_path: Path) -> None:
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
    code = "import os, trainable.core.locks as p\nwith p.scratch_dir('mine-'): os.kill(os.getpid(), 9)"
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


def test_a_folder_is_locked_only_while_a_process_holds_its_lock(tmp_path: Path) -> None:
    assert not is_locked(tmp_path)
    with lock_folder(tmp_path):
        assert is_locked(tmp_path)
    assert not is_locked(tmp_path)


def test_the_exclusive_lock_is_waited_for_until_the_processes_with_a_shared_one_have_exited(tmp_path: Path) -> None:
    code = "import time; from pathlib import Path; from trainable.core.locks import hold_shared_lock\n"
    code += f"hold_shared_lock(Path({str(tmp_path / 'workers')!r})); print(flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as worker:
        assert worker.stdout is not None
        worker.stdout.readline()
        try:
            with pytest.raises(InputError, match=r"processes of its trials still run after 0\.2 s"):
                wait_for_exclusive_lock(tmp_path / "workers", 0.2)
        finally:
            worker.kill()
    wait_for_exclusive_lock(tmp_path / "workers", 10)


def test_a_shared_lock_in_a_folder_that_does_not_exist_is_skipped(tmp_path: Path) -> None:
    hold_shared_lock(tmp_path / "gone" / "workers")
    assert list(tmp_path.iterdir()) == []
