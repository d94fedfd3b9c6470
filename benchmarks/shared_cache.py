"""Host memory of the data where several trials on one machine train from one cache.

    python benchmarks/shared_cache.py [--processes 8] [--cases 12]

Each process reads patches of every case until it has touched all of the cache, and holds it open. The proportional
share (PSS) of the cache's mapped pages, summed over the processes, in copies of the cache; compared with the same data
loaded into each process as float32, as a dataset that caches in memory holds it. Linux only.
"""

from __future__ import annotations

import argparse
import multiprocessing
import re
import tempfile
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np
from rich.table import Table

from trainable.core.config import TrainConfig
from trainable.core.console import make_console
from trainable.data.cache import open_case
from trainable.data.patches import PatchReader
from trainable.data.phantom import write_phantoms
from trainable.data.prepare import prepare_data

MIB = 2**20


def hold(cache: Path, names: list[str], config: TrainConfig, read: Barrier, done: Barrier) -> None:
    """Read patches, then the rest of every case, and wait."""
    reader = PatchReader(cache, names, config)
    for index in range(2 * len(names)):
        reader.read([(0, index)])
    for case in reader._open.values():
        int(case.image.sum()) + int(case.label.sum())
    read.wait()
    done.wait()


def mapped(pid: int, folder: Path) -> int:
    """Bytes of a process's proportional share of the files mapped from a folder."""
    total, inside = 0, False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            inside = str(folder) in line
        elif inside and line.startswith("Pss:"):
            total += int(line.split()[1]) * 1024
    return total


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--cases", type=int, default=12)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_phantoms(folder / "data", cases=asked.cases, shape=(240, 240, 155), workers=1)
        config = TrainConfig(
            data_dir=folder / "data", cache_dir=folder / "cache", val_fraction=0, test_fraction=0, tumour_share=0.3
        )
        data = prepare_data(config, quiet=True)
        names = list(data.split.train)
        cases = [open_case(data.folder, case) for case in names]
        size = sum(case.image.nbytes + case.label.nbytes for case in cases)
        loaded = sum(case.image.size * np.dtype(np.float32).itemsize + case.label.nbytes * 3 for case in cases)
        context = multiprocessing.get_context("spawn")
        read, done = context.Barrier(asked.processes + 1), context.Barrier(asked.processes + 1)
        arguments = data.folder, names, config, read, done
        processes = [context.Process(target=hold, args=arguments) for _ in range(asked.processes)]
        for process in processes:
            process.start()
        read.wait()
        shares = [mapped(process.pid or 0, folder / "cache") for process in processes]
        done.wait()
        for process in processes:
            process.join()
    print(__doc__)
    table = Table("", "MiB in all", "copies of the cache", box=None, header_style="bold")
    table.add_row("the cache on disk: image and label", f"{size / MIB:.0f}", "1.00")
    row = f"voxtune, {asked.processes} processes, mapped (PSS)"
    table.add_row(row, f"{sum(shares) / MIB:.0f}", f"{sum(shares) / size:.2f}")
    many = asked.processes * loaded
    table.add_row(
        f"loaded as float32 in {asked.processes} processes (computed)", f"{many / MIB:.0f}", f"{many / size:.2f}"
    )
    make_console().print(table)


if __name__ == "__main__":
    main()
