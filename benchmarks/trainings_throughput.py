"""How well a set of trainings keeps several GPUs, or cores, busy: trainings per hour on 1, 2, 4, ..., and of linear.

    python benchmarks/trainings_throughput.py [--per_slot 6] [--slots 1 2 4] [--epochs 4] [--patches 100 400] [--cpu]

For each number of patches per epoch, each number of slots runs `per_slot` trainings per slot, in one local Ray cluster
of N GPUs (or cores). Printed are trainings per hour from the first start on, the same once each slot has ended its
first training (the processes are warm then), its share of linear, and the median gap between two trainings of a slot:
from the last row of one's metrics.csv to the first patch of the next.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

from common import prepare_phantoms

from trainable.core.config import TrainConfig
from trainable.core.logger import init_logger
from trainable.data.phantom import write_phantoms
from trainable.data.prepare import prepare_data
from trainable.data.split import save_split
from trainable.training.training_dir import TrainingDir
from trainable.training.training_log import read_rows
from tune.driver.trainings import Training, run_trainings
from tune.spec.sections import Resources

SMALL = {"depth": 3, "base_channels": 4, "target_shape": (16, 16, 16), "device": "cpu", "num_workers": 0}
LARGE = {"target_shape": (128, 128, 128), "amp": "bf16", "device": "cuda", "num_workers": 4, "val_cases": 1}


def trainings(count: int, folder: Path, base: TrainConfig) -> list[Training]:
    """Return trainings that differ only in their seed."""
    names = [f"seed_{seed}" for seed in range(count)]
    return [
        Training(name, base.model_copy(update={"seed": seed, "output_dir": folder / name}))
        for seed, name in enumerate(names)
    ]


def spans(wanted: list[Training]) -> list[tuple[float, float]]:
    """Return (first patch, last row) of each training, in seconds since the epoch, in the order of their ends."""
    times = []
    for training in wanted:
        paths = TrainingDir(training.config.output_dir)
        seconds = sum(float(row.get(k) or 0) for row in read_rows(paths.metrics) for k in ("epoch_time", "val_time"))
        end = paths.metrics.stat().st_mtime
        times.append((end - seconds, end))
    return sorted(times, key=lambda span: span[1])


def gaps(times: list[tuple[float, float]], slots: int) -> list[float]:
    """Return the seconds that a slot idles between two trainings: each starts on the slot that was free first."""
    ends = sorted(end for _, end in times)
    starts = sorted(start for start, _ in times)[slots:]
    return [start - end for start, end in zip(starts, ends, strict=False)]


def measure(slots: int, per_slot: int, folder: Path, base: TrainConfig) -> tuple[float, float, float]:
    """Return the trainings per hour in all and once warm, and the median gap in seconds."""
    wanted = trainings(slots * per_slot, folder / str(slots), base)
    on_gpu = base.device == "cuda"
    kind = "GPU" if on_gpu else "CPU"
    os.environ["RAY_OVERRIDE_RESOURCES"] = f'{{"{kind}": {slots}}}'
    resources = Resources(gpu=int(on_gpu), cpu=4 if on_gpu else 1)
    if on_gpu:
        os.environ.pop("RAY_OVERRIDE_RESOURCES")
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, range(slots)))
    started = time.time()
    outcomes = run_trainings(
        lambda _: wanted, folder / str(slots), resources, resume_command="start the benchmark again"
    )
    assert not any(outcome.error for outcome in outcomes.values()), outcomes
    times = spans(wanted)
    warm = times[slots - 1][1]  # each slot has ended one
    rest = [end for _, end in times if end > warm]
    return (
        3600 * len(wanted) / (times[-1][1] - started),
        3600 * len(rest) / (times[-1][1] - warm),
        statistics.median(gaps(times, slots)),
    )


def main() -> None:
    """Measure, and print a row per number of slots."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--per_slot", type=int, default=6)
    parser.add_argument("--slots", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--patches", type=int, nargs="+", default=[100], help="per epoch")
    parser.add_argument("--cpu", action="store_true", help="small networks on cores")
    arguments = parser.parse_args()
    init_logger()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if arguments.cpu:
            prepare_phantoms(folder / "data", folder / "cache")
        else:
            write_phantoms(folder / "data", cases=8, shape=(240, 240, 155))
        data = prepare_data(TrainConfig(data_dir=folder / "data", cache_dir=folder / "cache"), quiet=True)
        save_split(data.split, folder / "split.json")
        places = {"data_dir": folder / "data", "cache_dir": data.folder, "split_file": folder / "split.json"}
        kind = {"epochs": arguments.epochs, "save_freq": 1000, **(SMALL if arguments.cpu else LARGE)}
        for patches in arguments.patches:
            base = TrainConfig(**places, **kind, patches_per_epoch=patches)
            home = folder / f"{patches}_patches"
            rows = [(slots, *measure(slots, arguments.per_slot, home, base)) for slots in arguments.slots]
            print(f"{patches} patches per epoch\nslots  trainings/h  once warm  of linear  gap in s")
            for slots, whole, warm, gap in rows:
                linear = warm / (rows[0][2] / rows[0][0] * slots)
                print(f"{slots:5}  {whole:11.0f}  {warm:9.0f}  {linear:9.2f}  {gap:8.2f}", flush=True)


if __name__ == "__main__":
    main()
