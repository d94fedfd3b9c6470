"""What looking at a large sweep takes: seconds and memory of status, show, importance, trials, verify and report.

    python benchmarks/large_run.py [--trials 1000] [--repeats 5]

Each verb runs as a process of its own on a synthetic run of `brats`, so that Python's start and all imports count.
Prints the median of the wall time, of the CPU time and of the peak memory, and the size of the files that it wrote.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.table import Table
from synthetic_run import make_synthetic_run

from trainable.core.console import make_console

VERBS = {
    "status": ["status", "RUN"],
    "status --json": ["status", "RUN", "--json"],
    "show": ["show", "RUN", "0"],
    "best": ["best", "RUN"],
    "importance": ["importance", "RUN"],
    "trials --csv": ["trials", "RUN", "--csv", "OUT/trials.csv"],
    "trials --parquet": ["trials", "RUN", "--parquet", "OUT/trials.parquet"],
    "curves --csv": ["curves", "RUN", "--csv", "OUT/curves.csv"],
    "verify": ["verify", "RUN"],
    "report": ["report", "RUN", "-o", "OUT/report.html"],
}


def measure(words: list[str]) -> tuple[float, float, float]:
    """Run a verb; return its wall time and CPU time in seconds, and its peak memory in MiB."""
    began = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", "tune", *words], stdout=subprocess.DEVNULL)
    _, code, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(code)
    if process.returncode:
        raise SystemExit(f"voxtune {' '.join(words)} ended with code {process.returncode}")
    return time.monotonic() - began, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def main() -> None:
    """Make the run, time the verbs, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    table = Table("verb", "seconds", "CPU seconds", "MiB", "file in MiB", title=f"{args.trials} trials", box=None)
    with tempfile.TemporaryDirectory() as folder:
        run, out = make_synthetic_run(Path(folder) / "run", trials=args.trials), Path(folder)
        for name, verb in VERBS.items():
            words = [word.replace("RUN", str(run)).replace("OUT", str(out)) for word in verb]
            runs = [measure(words) for _ in range(args.repeats)]
            wall, cpu, memory = (statistics.median(kind) for kind in zip(*runs, strict=True))
            made = Path(words[-1])
            size = f"{made.stat().st_size / 2**20:.1f}" if made.is_file() else ""
            table.add_row(name, f"{wall:.2f}", f"{cpu:.2f}", f"{memory:.0f}", size)
    make_console().print(table)


if __name__ == "__main__":
    main()
