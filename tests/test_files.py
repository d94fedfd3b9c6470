"""Files that are written whole or not at all."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import BinaryIO

import pytest

from trainable.core.errors import InputError
from trainable.core.files import (
    atomic_copy,
    atomic_write,
    atomic_write_text,
    errors_name,
    fsync_path,
    link_or_copy,
)
from trainable.core.options import make_config
from trainable.data.phantom import write_phantoms
from trainable.data.prepare import prepare_data


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


def test_a_deleted_working_folder_is_an_error_that_says_so(tmp_path: Path) -> None:
    """Before, `voxtune prepare` ended with "Intel oneMKL FATAL ERROR: Cannot load libtorch_cpu.so"."""
    write_phantoms(tmp_path / "data", cases=2, shape=(32, 32, 32), workers=1)
    code = (
        "import os, sys, tune.__main__ as entry; os.mkdir('gone'); os.chdir('gone'); os.rmdir(os.getcwd()); "
        f"sys.argv = ['voxtune', 'prepare', {str(tmp_path / 'data')!r}]; entry.main()"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path, env=environment
    )
    assert done.returncode == 2
    assert done.stderr == "error: the working folder was deleted; change into one that exists, such as `cd ~`\n"


def test_a_cache_without_room_names_the_file_and_the_cause(tmp_path: Path) -> None:
    """Before, it named neither: "373968 requested and 153536 written"."""
    write_phantoms(tmp_path / "data", cases=2, shape=(48, 48, 40), workers=1)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))  # numpy sees the same as on a full disk
        with pytest.raises(InputError) as caught:
            prepare_data(make_config({"data_dir": tmp_path / "data"}), quiet=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    message = str(caught.value)
    assert message.startswith(
        f"{tmp_path}/data.cache: the cache cannot be written ([Errno 28] No space left on device: "
    )
    assert message.endswith("/image.npy'); free some space, or choose a cache_dir that can be")


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


@pytest.mark.parametrize("linkable", [True, False])
def test_a_file_is_linked_or_copied_in_place_of_the_old_one(
    linkable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(source: Path, target: Path) -> None:
        raise OSError(errno.EXDEV, "not on one file system")

    if not linkable:
        monkeypatch.setattr(os, "link", link)
    source, target = tmp_path / "source", tmp_path / "target"
    (tmp_path / ".target.new").write_text("left by a kill")
    target.write_text("old")
    for text in ("new", "newer"):
        source.unlink(missing_ok=True)
        source.write_text(text)
        link_or_copy(source, target)
        assert target.read_text() == text
        assert target.samefile(source) is linkable
    assert {path.name for path in tmp_path.iterdir()} == {"source", "target"}
