"""What `voxtune estimate` predicts against what came: five small sweeps, really trained.

    python benchmarks/estimate_accuracy.py DIR [--only 0 3] [--data DATA] [--space demo] [--set KEY=VALUE ...]

Each sweep is estimated, right after that launched, and compared: trials, epochs, trials that trained to their end, and
the time from the start of the first trial to the end of the last. DIR holds the runs, and without --data 10 phantoms.
--only: numbers of the sweeps. --set: what they share, by default a small network and small patches.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from trainable.data.phantom import write_phantoms
from tune.estimate import estimate
from tune.planning.forecast import Range
from tune.run.events import EventKind, read_events
from tune.run.results import Run, read_run
from tune.spec.sweep_file import load_sweep_config

SMALL = ["train.target_shape=[24, 24, 24]", "train.patches_per_epoch=16", "train.depth=2"]
SWEEPS: dict[str, list[str]] = {
    "asha by 3, 12 trials, 9 epochs": ["study.trials=12", "study.seed=11"],
    "asha by 2, 16 trials, 6 epochs": [
        "study.trials=16", "study.seed=12", "train.epochs=6", "early_stopping.reduction_factor=2",
    ],
    "asha from epoch 2, validated every 2nd, 14 trials, 12 epochs": [
        "study.trials=14", "study.seed=13", "train.epochs=12", "train.val_freq=2", "early_stopping.grace_period=2",
    ],
    "no early stopping, 6 trials, 5 epochs": [
        "study.trials=6", "study.seed=14", "train.epochs=5", "early_stopping.type=none",
    ],
    "median, 10 trials, 8 epochs, batches of 1 to 4": [
        "study.trials=10", "study.seed=15", "train.epochs=8", "early_stopping.type=median",
        "early_stopping.grace_period=2", "space.batch_size={choice: [1, 2, 4]}",
    ],
}  # fmt: skip


def actual(run: Run) -> dict[str, float]:
    """What a sweep has taken."""
    events = read_events(run.dir.events)
    starts = [event.time for event in events if event.kind == EventKind.TRIAL_STARTED]
    ends = [event.time for event in events if event.kind == EventKind.TRIAL_ENDED]
    return {
        "trials": len(run.own_trials),
        "epochs": sum(trial.epoch for trial in run.own_trials),
        "finished": sum(trial.finished for trial in run.own_trials),
        "minutes": (max(ends) - min(starts)) / 60,
    }


def row(title: str, name: str, expected: Range, came: float, digits: int) -> str:
    """One row of the table."""
    low, middle, high = (f"{value:.{digits}f}" for value in (expected.p10, expected.p50, expected.p90))
    inside = "yes" if expected.p10 <= came <= expected.p90 else "no"
    return f"| {title} | {name} | {low} | {middle} | {high} | {came:.{digits}f} | {inside} |"


def one_sweep(folder: Path, space: str, data: Path, title: str, settings: Sequence[str]) -> None:
    """Estimate and launch a sweep; print its rows."""
    config = load_sweep_config(space, [f"train.data_dir={data}", *settings])
    forecast = estimate(config).forecasts[0]
    words = [sys.executable, "-m", "tune", "launch", space, "--data", data, "--out", folder, "--no_report"]
    words += [word for change in settings for word in ("--set", change)]
    with folder.with_suffix(".log").open("w") as log:
        subprocess.run(words, check=True, stdout=log, stderr=log, env=os.environ)
    came = actual(read_run(folder))
    minutes = Range(*(60 * hours for hours in vars(forecast.hours).values()))
    print(row(title, "trials", forecast.trials, came["trials"], 0))
    print(row("", "trained to their end", forecast.finished, came["finished"], 0))
    print(row("", "epochs", forecast.epochs, came["epochs"], 0))
    print(row("", "minutes", minutes, came["minutes"], 1), flush=True)


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", type=int, nargs="+", default=range(len(SWEEPS)))
    parser.add_argument("--data", type=Path)
    parser.add_argument("--space", default="demo")
    parser.add_argument("--set", nargs="+", default=SMALL, metavar="KEY=VALUE")
    args = parser.parse_args()
    data = args.data or args.folder / "data"
    if args.data is None:
        write_phantoms(data, cases=10, shape=(48, 48, 40), workers=1)
    print("| sweep | | P10 | P50 | P90 | came | within |")
    print("| --- | --- | --- | --- | --- | --- | --- |", flush=True)
    for number in args.only:
        title, changes = list(SWEEPS.items())[number]
        one_sweep(args.folder / f"run{number}", args.space, data, title, [*args.set, *changes])


if __name__ == "__main__":
    main()
