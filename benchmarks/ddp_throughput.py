"""One training on 1, 2 and 4 GPUs of this machine, end to end from files: patches per second, and the share of linear.

    python benchmarks/ddp_throughput.py [--data DATA] [--cases 16] [--patches 320] [--epochs 5] [--gpus 1 2 4]

`python train.py` by torchrun on the cases in DATA, or on phantoms of 240 x 240 x 155 voxels, with the recipe of
search_spaces/brats.yaml's `train:` section, two patches a GPU and step, of 128^3 and of 64^3; the step grows with the
GPUs (--scale_batch), and so do the patches of an epoch. "training" is patches_per_second of metrics.csv, "all" the wall
time of the epochs with validation (divided among the GPUs) and checkpoints: medians over the epochs but the first.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from rich.table import Table

from trainable.core.config import TrainConfig
from trainable.core.console import make_console
from trainable.core.option_files import save_options
from trainable.data.phantom import write_phantoms
from trainable.data.prepare import prepare_data

ROOT = Path(__file__).parents[1]
BATCH = 2


@dataclass(frozen=True)
class Speed:
    """Patches/s of training and of all, and the share of the training spent waiting for data."""

    training: float
    all: float
    wait: float


def measure(config: TrainConfig, gpus: int, folder: Path) -> Speed:
    """Train on some GPUs; the epoch of `config` is that of one."""
    recipe, output = folder / "recipe.yaml", folder / f"{config.target_shape[0]}_{gpus}"
    save_options(config, recipe)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(gpus)] * (gpus > 1)
    patches = config.patches_per_epoch * gpus
    words = ["--config", recipe, "--output_dir", output, "--patches_per_epoch", patches, "--scale_batch"]
    process = subprocess.Popen(
        [sys.executable, *launcher, str(ROOT / "train.py"), *map(str, words)], stdout=subprocess.PIPE, text=True,
        cwd=ROOT, env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )  # fmt: skip
    ended = []
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("epoch "):
            ended.append(time.monotonic())
            print(f"{gpus} GPUs: {line}", end="", file=sys.stderr, flush=True)
    if process.wait():
        raise SystemExit(f"the training on {gpus} GPUs ended with exit code {process.returncode}")
    with (output / "metrics.csv").open(newline="") as file:
        _, *counted = csv.DictReader(file)
    between = [later - earlier for earlier, later in pairwise(ended)]
    return Speed(
        statistics.median(float(row["patches_per_second"]) for row in counted),
        patches / statistics.median(between),
        statistics.median(float(row["data_wait_share"]) for row in counted),
    )


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of BraTS2021 cases, instead of phantoms")
    parser.add_argument("--cases", type=int, default=16, help="phantoms")
    parser.add_argument("--patches", type=int, default=320, help="an epoch and GPU, of 128^3; four times that of 64^3")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 2, 4])
    asked = parser.parse_args()
    card = torch.cuda.get_device_name()
    print(f"{card} x {torch.cuda.device_count()}, {os.cpu_count()} CPU cores, torch {torch.__version__}\n{__doc__}")
    table = Table("patches", "GPUs", "training", "of linear", "all", "of linear", "data wait", box=None)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        if asked.data is None:
            write_phantoms(scratch / "cases", cases=asked.cases, shape=(240, 240, 155))
        for size in (128, 64):
            config = TrainConfig(
                data_dir=asked.data or scratch / "cases", cache_dir=scratch / "cache", epochs=asked.epochs,
                patches_per_epoch=asked.patches * (4 if size == 64 else 1), target_shape=(size, size, size),
                batch_size=BATCH, deep_supervision=True, optimizer="adamw", amp="bf16", gradient_clipping=1.0,
                num_workers=6, test_fraction=0.0, val_fraction=0.25, save_freq=1000,
            )  # fmt: skip
            prepare_data(config, quiet=True)
            speeds = {gpus: measure(config, gpus, scratch) for gpus in asked.gpus if gpus <= torch.cuda.device_count()}
            (few, one), *_ = speeds.items()
            for gpus, speed in speeds.items():
                linear = gpus / few
                table.add_row(
                    f"{BATCH} x {size}^3", str(gpus), f"{speed.training:.1f}",
                    f"{speed.training / one.training / linear:.3f}", f"{speed.all:.1f}",
                    f"{speed.all / one.all / linear:.3f}", f"{speed.wait:.1%}",
                )  # fmt: skip
    make_console().print(table)


if __name__ == "__main__":
    main()
