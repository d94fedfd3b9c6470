"""Trials that share one GPU: patches per second of all of them together, ours and MONAI's DynUNet.

    python benchmarks/packing.py [--size 64] [--batch 1] [--processes 1 2 4] [--sides "MONAI, bf16" voxtune]

Each process trains its own network, as one trial would, on random patches on the GPU: the bare steps of
benchmarks/step_throughput.py. All begin together and count their steps for five seconds.
"""

from __future__ import annotations

import argparse
import sys
import time

import torch
from rich.table import Table
from step_throughput import OurStep, monai_step, on_patches

from trainable.core.config import TrainConfig
from trainable.core.console import make_console
from trainable.core.device import kernel_selection
from tune.driver.measurement.parallel_processes import WaitForAll, run_together

SECONDS, WARM_UP, ROUND = 5.0, 12, 10  # ROUND: steps between looks at the clock
TIMEOUT = 600  # seconds of one figure
MAKERS = {
    "MONAI, bf16": lambda size, batch: on_patches(monai_step(torch.bfloat16), size, batch),
    "voxtune": OurStep,
}


def count_steps(asked: tuple[str, int, int], wait_for_all: WaitForAll) -> float:
    """In a process of the group: return its steps per second. asked: side, size and batch."""
    name, size, batch = asked
    with kernel_selection(TrainConfig()):
        step = MAKERS[name](size, batch)
        for _ in range(WARM_UP):
            step()
        torch.cuda.synchronize()
        wait_for_all()
        steps, started = 0, time.perf_counter()
        while time.perf_counter() - started < SECONDS:
            for _ in range(ROUND):
                step()
            torch.cuda.synchronize()
            steps += ROUND
        return steps / (time.perf_counter() - started)


def total(name: str, size: int, batch: int, processes: int) -> float:
    """Return the patches per second of all processes together."""
    return batch * sum(run_together(count_steps, [(name, size, batch)] * processes, TIMEOUT))


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=64, help="of a patch")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--sides", nargs="+", choices=list(MAKERS), default=list(MAKERS))
    asked = parser.parse_args()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}; {asked.size}^3, batch {asked.batch}\n{__doc__}")
    table = Table("patches/s of all", *(f"{count} on the GPU" for count in asked.processes), box=None)
    for name in asked.sides:
        row = []
        for count in asked.processes:
            row.append(f"{total(name, asked.size, asked.batch, count):.1f}")
            print(f"{name}, {count}: {row[-1]}", file=sys.stderr, flush=True)
        table.add_row(name, *row)
    make_console().print(table)


if __name__ == "__main__":
    main()
