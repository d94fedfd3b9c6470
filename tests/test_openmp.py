"""What torch's OpenMP reads when torch is imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

WATCH = """
import os, sys
class Watch:
    def find_spec(self, name, *_):
        if name == "torch":
            print(os.environ.get("OMP_WAIT_POLICY"), flush=True)
            os._exit(0)
sys.meta_path.insert(0, Watch())
"""


@pytest.mark.parametrize("given", ["", "active"])
@pytest.mark.parametrize("module", ["trainable.cli", "tune.__main__", "tune.driver.processes.worker", "voxtune"])
def test_threads_sleep_while_they_wait_unless_the_user_wants_otherwise(module: str, given: str) -> None:
    """In each entry point, and in the module of a trial's process: it is set before torch is imported."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    environment |= {"OMP_WAIT_POLICY": given} if given else {}
    environment["PYTHONPATH"] = str(Path(__file__).parents[1])
    code = f"{WATCH}import {module}\nimport torch"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == f"{given or 'passive'}\n"
