"""Many cases with few files that a process may open."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from trainable.core.errors import InputError
from trainable.core.files import raise_open_files_limit
from trainable.core.options import make_config
from trainable.data.cache import open_case
from trainable.data.patches import PatchReader
from trainable.data.phantom import write_phantoms
from trainable.data.prepare import Data, prepare_data

CONFIG = make_config({"depth": 2, "base_channels": 2, "target_shape": (16, 16, 16), "device": "cpu"})


def run_limited(code: str, soft: int, hard: int) -> str:
    """Run Python code in a process that may open `soft` files, and may raise that to `hard`; return what it prints."""
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))\n"
    done = subprocess.run([sys.executable, "-c", limit + code], capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def test_the_soft_limit_is_raised_to_the_hard_one() -> None:
    code = (
        "from trainable.core.files import raise_open_files_limit\n"
        "print(raise_open_files_limit(), resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    assert run_limited(code, 64, 200) == "200 (200, 200)\n"
    assert run_limited(code, 200, 200) == "200 (200, 200)\n"


@pytest.mark.slow
def test_more_cases_are_trained_on_than_files_may_be_open(tmp_path: Path) -> None:
    """40 cases of which each keeps 2 files open, and a limit of 72: before, epoch 1 ended with errno 24."""
    write_phantoms(tmp_path / "data", cases=40, shape=(32, 32, 32), workers=1)
    prepare_data(make_config({"data_dir": tmp_path / "data"}), quiet=True)
    flags = ["--data_dir", str(tmp_path / "data"), "--output_dir", str(tmp_path / "out"), "--device", "cpu"]
    flags += ["--depth", "2", "--base_channels", "1", "--target_shape", "8", "8", "8", "--epochs", "1"]
    flags += ["--val_fraction", "0.03", "--test_fraction", "0"]
    printed = run_limited(f"from trainable.cli import main; print('code', main({flags}))", 72, 72)
    assert "cases: 39 train, 1 val" in printed
    assert "\ncode 0\n" in printed, printed


def open_files_below(folder: Path) -> int:
    """How many files below a folder this process has open or mapped."""
    links = [os.path.realpath(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd")]
    return sum(path.startswith(str(folder)) for path in links)


def test_the_case_that_was_not_read_for_longest_is_closed(prepared: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = PatchReader(prepared.folder, prepared.split.train, CONFIG)
    assert reader.max_open == min(raise_open_files_limit() // 8, 10_000)
    whole = PatchReader(prepared.folder, prepared.split.train, CONFIG).read([(0, index) for index in range(24)])
    before = open_files_below(prepared.folder)
    reader.max_open = 2
    limited = reader.read([(0, index) for index in range(24)])
    assert open_files_below(prepared.folder) - before <= 2 * 2
    for name in ("image", "label"):
        assert all(map(np.array_equal, limited[name], whole[name]))  # type: ignore[literal-required]
    a, b, c = reader.names[:3]
    opened = list[str]()
    monkeypatch.setattr(
        "trainable.data.patches.open_case", lambda folder, name: (opened.append(name), open_case(folder, name))[1]
    )
    reader._open.clear()
    for name in (a, b, a, c, a, b):
        assert reader._case(name).name == name
    assert opened == [a, b, c, b]


def test_a_limit_on_open_files_is_no_reason_to_prepare_again(prepared: Data) -> None:
    name, limit = prepared.split.train[0], resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, limit[1]))
        with pytest.raises(InputError) as caught:
            open_case(prepared.folder, name)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)
    assert str(caught.value) == (
        f"{prepared.folder / name}: cannot be opened: too many files are open here; allow more with `ulimit -n`, or "
        "close other programs"
    )
