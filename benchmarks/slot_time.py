"""Where the time of a slot goes in a sweep of short trials on 1, 2 or more GPUs of one host, and trials per hour.

    python benchmarks/slot_time.py --data DATA [--gpus 1 2 4] [--trials 8] [--epochs 4] [--patches 100] [--cpu]

A real sweep per number of GPUs: --trials for each GPU, random recipes, no early stopping, a whole-volume validation
and a checkpoint after each epoch. Each process notes when it begins and ends what; between two moments it does what the
second one names:

    steps         training steps, until the last one of an epoch is done
    validation    until it has the scores, with the copy of the state to the CPU
    writing       the last epoch's checkpoint and the wait for earlier ones; the others' are written as the next trains
    report        the last report: the checkpoint into the storage, the driver's answer
    driver, Ray   from the end of a trial's training to the begin of the next in this process
    set-up        of the next training: cases, network, optimizer
    first step    of a trial, with what it compiles or captures

Trials per hour are counted from when each slot had ended its first trial. "of linear" compares with the mean of the
rows of the fewest GPUs: --gpus 1 4 1 4 tells the machine's warming up from the number of GPUs.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from unittest import mock

import torch
from rich.table import Table

from trainable.core.config import TrainConfig
from trainable.core.console import make_console
from trainable.data.phantom import write_phantoms
from trainable.data.prepare import Data
from trainable.training.epoch_result import EpochResult
from trainable.training.step_progress import OnProgress
from tune.driver.processes.trial_fit import fit_to_storage

BATCH = 2
PARTS = ["steps", "validation", "writing", "report", "driver, Ray", "set-up", "first step"]
Moment = tuple[float, str, str]  # seconds, name, trial


def noted_fit(
    config: TrainConfig, data: Data, on_epoch_end: Callable[[EpochResult], None], on_progress: OnProgress, *, log: Path
) -> EpochResult:
    """fit, with a line in a file of this process at each moment."""
    from trainable.training import loop
    from trainable.training.step import TrainStep

    file = (log / f"{os.getpid()}").open("a", buffering=1)
    updated = [False]

    def note(moment: str) -> None:
        file.write(f"{time.time()} {moment} {config.seed}\n")

    def noted_update(self: TrainStep, *, plain: Callable[[TrainStep], torch.Tensor] = TrainStep.update) -> torch.Tensor:
        norm = plain(self)
        if not updated[0]:
            updated[0] = True
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            note("first_step")
        return norm

    def noted_epoch(*args: object, plain: Callable[..., object] = loop.train_one_epoch) -> object:
        if not updated[0]:
            note("set-up")
        stats = plain(*args)
        note("steps")
        return stats

    def noted_validation(*args: object, plain: Callable[..., object] = loop.validate_epoch) -> object:
        scores = plain(*args)
        note("validation")
        return scores

    def noted_end(result: EpochResult) -> None:
        last = result.epoch == config.epochs
        if last:
            note("writing")
        on_epoch_end(result)
        if last:
            note("report")

    note("begin")
    with (
        file,
        mock.patch.object(TrainStep, "update", noted_update),
        mock.patch.object(loop, "train_one_epoch", noted_epoch),
        mock.patch.object(loop, "validate_epoch", noted_validation),
    ):
        return fit_to_storage(config, data, noted_end, on_progress)


def moments_of(path: Path) -> list[Moment]:
    """Return the moments that a process has noted, in order."""
    found = [line.split() for line in path.read_text().splitlines()]
    return sorted((float(seconds), name, trial) for seconds, name, trial in found)


def parts_of(moments: list[Moment]) -> dict[str, float]:
    """Return the seconds that a process spent on each part, from the end of its first trial to the end of its last."""
    first = next(index for index, (_, name, _) in enumerate(moments) if name == "report")
    last = max(index for index, (_, name, _) in enumerate(moments) if name == "report")
    seconds: dict[str, float] = defaultdict(float)
    ends = {"begin": "driver, Ray", "first_step": "first step"}
    for (before, _, _), (after, name, _) in pairwise(moments[first : last + 1]):
        seconds[ends.get(name, name)] += after - before
    return seconds


def run_sweep(args: argparse.Namespace, gpus: int, folder: Path) -> list[str]:
    """Run a sweep in this process; return a row of the table."""
    from tune.driver.sweep import launch
    from tune.spec.sweep_config import make_sweep_config

    network = {"depth": 3, "base_channels": 4} if args.cpu else {"deep_supervision": True, "amp": "bf16"}
    train = {"epochs": args.epochs, "patches_per_epoch": args.patches, "batch_size": BATCH, "val_cases": 2}
    train |= {"data_dir": str(args.data), "cache_dir": str(args.cache), "num_workers": 0 if args.cpu else 4}
    train |= {"target_shape": [32 if args.cpu else 128] * 3, "device": "cpu" if args.cpu else "cuda"}
    config = make_sweep_config(
        {
            "study": {"trials": args.trials * gpus},
            "searcher": {"type": "random"},
            "early_stopping": {"type": "none"},
            "resources": {"gpu": 0 if args.cpu else 1, "cpu": 1 if args.cpu else 8},
            "train": {**train, **network},
            "space": {
                "optimizer": {"choice": ["adam", "adamw"]},
                "lr": {"loguniform": [1e-4, 1e-2]},
                "weight_decay": {"loguniform": [1e-6, 1e-2]},
            },
        }
    )
    log = folder / "moments"
    log.mkdir(parents=True)
    launch(config, folder / "run", fit=partial(noted_fit, log=log))
    processes = [moments_of(path) for path in sorted(log.iterdir())]
    return row_of(gpus, [moments for moments in processes if sum(name == "report" for _, name, _ in moments) > 1])


def row_of(gpus: int, processes: list[list[Moment]]) -> list[str]:
    """Return the numbers of a sweep: GPUs, trials per hour, and the mean seconds per trial of each part."""
    ends = sorted(seconds for moments in processes for seconds, name, _ in moments if name == "report")
    start = max(min(seconds for seconds, name, _ in moments if name == "report") for moments in processes)
    later = [end for end in ends if end > start]
    rate = 3600 * len(later) / (later[-1] - start)
    parts = [parts_of(moments) for moments in processes]
    trials = [sum(name == "report" for _, name, _ in moments) - 1 for moments in processes]
    means = [sum(part[name] for part in parts) / sum(trials) for name in PARTS]
    return [str(gpus), f"{rate:.0f}", *(f"{mean:.2f}" for mean in means), f"{sum(means):.2f}"]


def main() -> None:
    """Print one table, a row per number of GPUs, each of a sweep in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of BraTS cases; phantoms if it is not given")
    parser.add_argument("--cache", type=Path, help="of the prepared cases")
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--trials", type=int, default=8, help="per GPU")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--patches", type=int, default=100, help="per epoch")
    parser.add_argument("--cpu", action="store_true", help="a tiny network; --gpus then counts cores")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print("ROW", *run_sweep(args, args.gpus[0], args.one), sep="\t")
        return
    table = Table("GPUs", "trials per hour", "of linear", *PARTS, "seconds per trial", box=None, header_style="bold")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        args.data, args.cache = args.data or folder / "data", args.cache or folder / "cache"
        if not args.data.exists():
            write_phantoms(args.data, cases=8, shape=(64, 64, 48) if args.cpu else (240, 240, 155))
        rows = []
        for index, gpus in enumerate(args.gpus):
            rows.append(measure(args, gpus, folder / f"{index}_{gpus}"))
            print(rows[-1], file=sys.stderr, flush=True)
    fewest = min(args.gpus)
    one = statistics.mean(float(row[1]) / fewest for row in rows if row[0] == str(fewest))
    for row in rows:
        table.add_row(*row[:2], f"{float(row[1]) / int(row[0]) / one:.3f}", *row[2:])
    print(f"{'CPU' if args.cpu else torch.cuda.get_device_name()}\n{__doc__}")
    make_console().print(table)


def measure(args: argparse.Namespace, gpus: int, folder: Path) -> list[str]:
    """Return the row of a sweep that runs in a new process, which sees so many GPUs or cores."""
    words = ["--data", args.data, "--cache", args.cache, "--gpus", gpus, "--trials", args.trials]
    words += ["--epochs", args.epochs, "--patches", args.patches, "--one", folder, *["--cpu"] * args.cpu]
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "CUDA_VISIBLE_DEVICES": ",".join(map(str, range(gpus)))}
    if args.cpu:
        environment["RAY_OVERRIDE_RESOURCES"] = f'{{"CPU": {gpus}}}'
    command = [sys.executable, str(Path(__file__).resolve()), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    rows = [line.split("\t")[1:] for line in done.stdout.splitlines() if line.startswith("ROW\t")]
    if not rows:
        raise SystemExit(f"{done.stdout[-2000:]}\n{done.stderr[-3000:]}")
    return rows[0]


if __name__ == "__main__":
    main()
