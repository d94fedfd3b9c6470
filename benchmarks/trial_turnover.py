"""From one trial's last optimizer step to the next trial's first, in one process on one GPU (or CPU).

    python benchmarks/trial_turnover.py [--data DATA] [--trials 21] [--cpu] [--size 128]

A real sweep, one trial at a time, another recipe each: optimizer, lr, weight decay, schedule, loss. Each trial trains
two epochs of four steps and validates a whole volume after each, of the cases in DATA or of phantoms; between the two
steps are the validation of the last epoch, its checkpoint, the report, the decision, the end of the trial, the proposal
of the next, its network, optimizer and data. The device is waited for after each step, so that times are of finished
steps. The first gap, in which no process starts, counts like the others.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
from rich.table import Table

from trainable.core.config import TrainConfig
from trainable.core.console import make_console
from trainable.data.phantom import write_phantoms
from trainable.data.prepare import Data
from trainable.training.epoch_result import EpochResult
from trainable.training.step import TrainStep
from trainable.training.step_progress import OnProgress
from tune.driver.processes.trial_fit import fit_to_storage
from tune.driver.sweep import launch
from tune.spec.sweep_config import SweepConfig, make_sweep_config

STEPS, EPOCHS, BATCH = 4, 2, 2


def timed_fit(
    config: TrainConfig, data: Data, on_epoch_end: Callable[[EpochResult], None], on_progress: OnProgress, *, log: Path
) -> EpochResult:
    """fit, with a line in log as each optimizer step is done."""
    plain = TrainStep.update

    def update(self: TrainStep) -> torch.Tensor:
        norm = plain(self)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        with log.open("a") as file:
            file.write(f"{config.seed} {time.time()}\n")
        return norm

    TrainStep.update = update  # type: ignore[method-assign]
    try:
        return fit_to_storage(config, data, on_epoch_end, on_progress)
    finally:
        TrainStep.update = plain  # type: ignore[method-assign]


def make_turnover_sweep(data: Path, folder: Path, trials: int, size: int, *, cpu: bool) -> SweepConfig:
    """The sweep."""
    network = {"depth": 3, "base_channels": 4} if cpu else {"deep_supervision": True, "amp": "bf16"}
    train = {"epochs": EPOCHS, "patches_per_epoch": STEPS * BATCH, "batch_size": BATCH, "target_shape": [size] * 3}
    train |= {"data_dir": str(data), "cache_dir": str(folder / "cache"), "num_workers": 0 if cpu else 4}
    return make_sweep_config(
        {
            "study": {"trials": trials},
            "early_stopping": {"type": "none"},
            "resources": {"gpu": 0 if cpu else 1, "cpu": 2 if cpu else 8},
            "train": {**train, **network, "device": "cpu" if cpu else "cuda"},
            "space": {
                "optimizer": {"choice": ["adam", "adamw", "sgd"]},
                "lr": {"loguniform": [1e-5, 1e-2]},
                "weight_decay": {"loguniform": [1e-6, 1e-2]},
                "scheduler": {"choice": ["cosine", "step", "exponential"]},
                "base_loss": {"choice": ["bce", "focal", "tversky"]},
            },
        }
    )


def main() -> None:
    """Print every gap and their median."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of BraTS2021 cases, instead of phantoms")
    parser.add_argument("--trials", type=int, default=21)
    parser.add_argument("--cpu", action="store_true", help="a tiny network on the CPU")
    parser.add_argument("--size", type=int, help="of a patch; 128, or 32 on the CPU")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = asked.data or folder / "data"
        if asked.data is None:
            write_phantoms(data, cases=8, shape=(64, 64, 48) if asked.cpu else (240, 240, 155))
        config = make_turnover_sweep(
            data, folder, asked.trials, asked.size or (32 if asked.cpu else 128), cpu=asked.cpu
        )
        launch(config, folder / "run", fit=partial(timed_fit, log=folder / "steps.txt"))
        steps: dict[str, list[float]] = {}
        for line in (folder / "steps.txt").read_text().splitlines():
            trial, moment = line.split()
            steps.setdefault(trial, []).append(float(moment))
    ordered = list(steps.values())
    gaps = [after[0] - before[-1] for before, after in pairwise(ordered)]
    print(f"{torch.cuda.get_device_name() if not asked.cpu else 'CPU'}\n{__doc__}")
    table = Table("gaps", "median, s", "shortest", "longest", box=None, header_style="bold")
    row = statistics.median(gaps), min(gaps), max(gaps)
    table.add_row(str(len(gaps)), *(f"{value:.2f}" for value in row))
    make_console().print(table)
    print("each, s: " + " ".join(f"{gap:.2f}" for gap in gaps))


if __name__ == "__main__":
    main()
