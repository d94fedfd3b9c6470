"""Folders locked by one process, temporary folders of killed processes."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TextIO

import pytest

from trainable.core.errors import InputError
from trainable.core.locks import hold_shared_lock, is_locked, lock_folder, scratch_dir, wait_for_exclusive_lock
from trainable.core.logger import init_logger

KERNEL_FLOCK = fcntl.flock


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


def test_a_waiter_for_a_folder_that_is_removed_locks_the_folder_that_it_makes_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a launch on another node that fails, while a second one waits for it."""
    locked, folder = threading.Event(), tmp_path / "out"

    def second() -> None:
        with lock_folder(folder):
            assert is_locked(folder)
            (folder / "result").touch()
            locked.set()

    waiter = threading.Thread(target=second)
    with monkeypatch.context() as patch:
        patch.setattr("trainable.core.locks.platform.node", lambda: "elsewhere")
        first = lock_folder(folder)
        first.__enter__()
    waiter.start()
    time.sleep(0.3)
    assert not locked.is_set()
    first.__exit__(None, None, None)
    waiter.join(10)
    assert locked.is_set()
    assert (folder / "result").exists()


def test_a_process_that_asks_whether_a_folder_is_locked_keeps_nobody_from_locking_it(tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()
    code = "import sys; from pathlib import Path; from trainable.core.locks import is_locked\n"
    code += f"while True: is_locked(Path({str(tmp_path)!r})); print('asked', flush=True)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            threading.Thread(target=process.stdout.read, daemon=True).start()
            for _ in range(300):
                with lock_folder(tmp_path):
                    pass
        finally:
            process.kill()


def test_a_folder_may_be_moved_while_it_is_locked(tmp_path: Path) -> None:
    with lock_folder(tmp_path / "new"):
        (tmp_path / "new").rename(tmp_path / "moved")
    assert [path.name for path in tmp_path.iterdir()] == ["moved"]


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


def flock_of_nfs4(file: TextIO, operation: int) -> None:
    """Lock a file as NFSv4 does: a shared lock needs one open for reading, an exclusive lock one open for writing."""
    mode = fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE
    if mode == (os.O_WRONLY if operation & fcntl.LOCK_SH else os.O_RDONLY):
        raise OSError(errno.EBADF, "Bad file descriptor")
    KERNEL_FLOCK(file, operation)


def use_every_lock(folder: Path) -> None:
    """Take each lock of the module once."""
    with lock_folder(folder / "out"):
        assert is_locked(folder / "out")
    wait_for_exclusive_lock(folder / "alone", 1)
    hold_shared_lock(folder / "workers")
    with scratch_dir("mine-") as one, scratch_dir("mine-") as other:
        assert one.is_dir()
        assert other.is_dir()


def test_every_lock_works_on_nfs4(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("fcntl.flock", flock_of_nfs4)
    use_every_lock(tmp_path)
    with (tmp_path / "workers").open("r+") as file, pytest.raises(BlockingIOError):
        KERNEL_FLOCK(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def test_a_file_system_without_locks_is_refused_for_a_folder_and_passed_over_where_less_is_lost(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def flock(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("fcntl.flock", flock)
    sentence = rf"out: its file system cannot lock files \({os.strerror(code)}\), .* choose a folder on another"
    with pytest.raises(InputError, match=sentence), lock_folder(tmp_path / "out"):
        pass
    hold_shared_lock(tmp_path / "workers")
    wait_for_exclusive_lock(tmp_path / "alone", 1)
    printed = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in printed] == [str(tmp_path / "workers"), str(tmp_path / "alone")]
    assert all("wait until the processes of its trials have ended before you resume" in line for line in printed)
    with scratch_dir("mine-") as one, scratch_dir("mine-") as other:
        assert one.is_dir()  # the second has not taken it for a killed process's
        assert other.is_dir()
    assert not capsys.readouterr().out


def test_another_error_of_a_lock_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("fcntl.flock", flock)
    for lock in (lambda: lock_folder(tmp_path).__enter__(), lambda: wait_for_exclusive_lock(tmp_path / "workers", 1)):
        with pytest.raises(OSError, match=rf"Input/output error: '{tmp_path}/\.?(lock|workers)'"):
            lock()


@pytest.mark.parametrize("seconds", [30.0, 0.3])
def test_a_folder_of_another_machine_is_waited_for_as_long_as_a_file_server_may_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], seconds: float
) -> None:
    """The process that has locked it says that it is on another machine, and is killed once it is waited for."""
    monkeypatch.setattr("trainable.core.locks.LOST_NODE_SECONDS", seconds)
    code = "import platform, sys, time; from pathlib import Path; from trainable.core.locks import lock_folder\n"
    code += "platform.node = lambda: 'elsewhere'\n"
    code += f"with lock_folder(Path({str(tmp_path)!r})): print('locked', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"locked\n"
        init_logger()
        if seconds < 1:
            with pytest.raises(InputError, match="is in use by process .* on elsewhere since"), lock_folder(tmp_path):
                pass
            process.kill()
        else:
            threading.Timer(1, process.kill).start()
            with lock_folder(tmp_path):
                assert process.wait(5)
    said = capsys.readouterr().out
    assert f"waits up to {seconds:g} s for {tmp_path}, in use by process {process.pid} on elsewhere since" in said
