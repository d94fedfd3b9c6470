"""Wrong arguments of a launch are refused at once, without the seconds that Ray and torch take to import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

MAIN = """
import sys
from tune.__main__ import main
try:
    main()
finally:
    print([name for name in ("ray", "torch") if name in sys.modules])
"""


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--data", "nowhere", "--out", "new"], "error: --data {folder}/nowhere: no such folder\n"),
        (["--data", ".", "--out", "taken"], "error: {folder}/taken holds a sweep already; go on with "),
        (["--data", ".", "--out", "new", "--notify", "notaurl"], "error: --notify: expected a URL such as https://"),
    ],
)
def test_wrong_arguments_of_a_launch_are_refused_before_ray_and_torch_are_imported(
    tmp_path: Path, options: list[str], error: str
) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/study.yaml").touch()
    command = [sys.executable, "-c", MAIN, "launch", "demo", *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith(error.format(folder=tmp_path)), done.stderr
    assert done.stdout == "[]\n"
    assert not (tmp_path / "new").exists()
