"""Files that are written whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import BinaryIO

import pytest

from trainable.core.files import atomic_copy, atomic_write, atomic_write_text, errors_name, fsync_path


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "split.json"
    path.write_text("old")
    with path.open() as reader:
        atomic_write_text(path, "new")
        assert reader.read() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_file_and_names_it(tmp_path: Path) -> None:
    path = tmp_path / "latest.pth"
    path.write_text("old")

    def fail(file: BinaryIO) -> None:
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left") as caught:
        atomic_write(path, fail)
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(path))
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_every_writer_flushes_to_the_disk_unless_requested_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[int] = []
    monkeypatch.setattr("os.fsync", flushed.append)
    for fsync, count in ((True, 3), (False, 0)):
        flushed.clear()
        atomic_write(tmp_path / "a", lambda file: file.write(b"a"), fsync=fsync)
        atomic_write_text(tmp_path / "b", "b", fsync=fsync)
        atomic_copy(tmp_path / "a", tmp_path / "c", fsync=fsync)
        assert len(flushed) == count
    assert [path.read_text() for path in sorted(tmp_path.iterdir())] == ["a", "b", "a"]


def test_an_error_without_a_path_gets_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="'/nowhere'"), errors_name(tmp_path):
        open("/nowhere")  # noqa: SIM115
    with pytest.raises(OSError, match=rf"No space left on device: '{tmp_path}'"), errors_name(tmp_path):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_file_system_that_cannot_flush_a_folder_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that cannot be flushed is an error that names it."""

    def fail_with(code: int) -> None:
        def fsync(handle: int) -> None:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr("os.fsync", fsync)

    (tmp_path / "file").touch()
    for code in (errno.EINVAL, errno.ENOTSUP):
        fail_with(code)
        fsync_path(tmp_path)
        with pytest.raises(OSError, match="file'"):
            fsync_path(tmp_path / "file")
    fail_with(errno.EIO)
    with pytest.raises(OSError, match=f"Input/output error: '{tmp_path}'"):
        fsync_path(tmp_path)
