"""Is a training by several processes as good as by one? Mean Dice per epoch, over seeds, at the same update.

    python benchmarks/dice_by_processes.py --data DATA [--processes 1 4] [--seeds 3] [--epochs 10] [--size 128]
    python benchmarks/dice_by_processes.py --device cpu --size 16 --depth 3 --channels 4 --patches 48 --epochs 6

Each seed is trained once by each number of processes, all with the split of seed 0. Without DATA the cases are
phantoms. Prints, for each epoch, the mean and the range over seeds for each number, and the largest difference between
two numbers for one seed.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from rich.table import Table

from trainable.core.config import TrainConfig
from trainable.core.console import make_console
from trainable.data.phantom import write_phantoms
from trainable.data.prepare import prepare_data
from trainable.train import train
from trainable.train_processes import train_in_processes
from trainable.training.training_dir import TrainingDir
from trainable.training.training_log import read_rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--channels", type=int, default=32)
    parser.add_argument("--patches", type=int, default=100)
    parser.add_argument("--device", default="cuda")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = asked.data or Path(folder, "phantoms")
        if asked.data is None:
            write_phantoms(data, cases=12, shape=(48, 48, 40) if asked.device == "cpu" else (240, 240, 155))
        scores = {count: [dice(asked, data, Path(folder), count, seed) for seed in range(asked.seeds)]
                  for count in asked.processes}  # fmt: skip
    make_console().print(table_of(scores))


def dice(asked: argparse.Namespace, data_dir: Path, folder: Path, processes: int, seed: int) -> list[float]:
    """Train with four micro-batches per step by this many processes; return the mean Dice of each epoch."""
    output = folder / f"{processes}_{seed}"
    places = {"data_dir": data_dir, "cache_dir": folder / "cache", "output_dir": output, "device": asked.device}
    network = {"target_shape": (asked.size,) * 3, "depth": asked.depth, "base_channels": asked.channels}
    step = {
        "patches_per_epoch": asked.patches,
        "batch_size": 1,
        "accumulation_steps": 4,
        "optimizer": "sgd",
        "lr": 0.02,
    }
    split = {"val_fraction": 0.4, "test_fraction": 0, "val_freq": 1, "overlap": 0}
    config = TrainConfig(**{**places, **network, **step, **split, "seed": 0, "epochs": asked.epochs})
    data = prepare_data(config)
    config = config.model_copy(update={"seed": seed})
    if processes == 1:
        train(config, data, tests_follow=True)
    else:
        train_in_processes(config, data, processes, tests_follow=True)
    return [float(row["val_dice_mean"]) for row in read_rows(TrainingDir(output).metrics)]


def table_of(scores: dict[int, list[list[float]]]) -> Table:
    """Return the table; scores: by number of processes, per seed, per epoch."""
    table = Table("epoch", title="mean Dice, and its range over seeds")
    for count in scores:
        table.add_column(f"{count} process{'es' * (count > 1)}", justify="right")
    table.add_column("largest difference for one seed", justify="right")
    for epoch, row in enumerate(zip(*(zip(*of_count, strict=True) for of_count in scores.values()), strict=True)):
        cells = [f"{sum(each) / len(each):.4f} ({min(each):.4f} to {max(each):.4f})" for each in row]
        apart = max(max(of_seed) - min(of_seed) for of_seed in zip(*row, strict=True))
        table.add_row(str(epoch + 1), *cells, f"{apart:.4f}")
    return table


if __name__ == "__main__":
    main()
