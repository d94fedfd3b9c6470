"""The drills of a sweep and of its confirmation, short; `make drill` runs them whole."""

import subprocess
import sys
from pathlib import Path

import pytest
from node_network import can_make_machines

DRILLS = Path(__file__).parent / "drills"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("drill", "words", "expected"),
    [
        ("sweep_drill.py", ["--kills", "5", "--trials", "16", "--seed", "1"], "training: 1, checkpoint write: 1"),
        ("sweep_drill.py", ["--kills", "5", "--trials", "16", "--serial"], "of an untouched sweep: the same"),
        ("fault_drill.py", ["--trials", "25"], "other scores than in a fresh process: none"),
        ("confirm_drill.py", ["--kills", "3", "--seed", "1"], "scores.csv yes, verify yes"),
        ("network_drill.py", ["--trials", "12"], "passed" if can_make_machines() else "left out"),
    ],
)
def test_nothing_is_lost(drill: str, words: list[str], expected: str):
    done = subprocess.run([sys.executable, DRILLS / drill, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert expected in done.stdout
