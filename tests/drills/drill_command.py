"""The command line that drills share."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path


def run_drill(drill: Callable[[Path, int, int], bool], text: str | None, *, kills: int) -> int:
    """Run a drill in a temporary folder, print whether it passed, and return the exit code.

    Args:
        drill: given the folder, the number of kills and the seed of when they come.
        text: for --help.
        kills: their number, unless --kills is given.
    """
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=kills)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        good = drill(Path(folder), arguments.kills, arguments.seed)
    print("passed" if good else "FAILED")
    return int(not good)
