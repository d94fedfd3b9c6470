"""What the kill of one process costs: in a sweep, in trials on two GPUs each, in a confirmation, in a retraining.

    python benchmarks/process_loss.py [--gpus 4] [--cpu]

A real sweep of `voxtune launch` on phantoms without early stopping, one trial per GPU; the same with two GPUs per
trial; `voxtune confirm` of the first sweep, and `voxtune retrain --gpus` of its winner on all GPUs. In each, as soon as
every slot has ended an epoch, one process that trains is killed by SIGKILL. A row says which training it was, how many
ended epochs were lost (0: only the one under way), the seconds until its next epoch had ended, next to the median
epoch of all trainings, whether every training has each epoch once, and what `voxtune verify` says of the run.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.table import Table

from trainable.core.console import make_console
from trainable.training.training_log import read_rows

EPOCHS = 6
TRAIN = {"epochs": EPOCHS, "patches_per_epoch": 200, "val_freq": 1, "batch_size": 4, "num_workers": 4, "amp": "bf16"}
TRAIN |= {"target_shape": [64, 64, 64], "depth": 4, "base_channels": 32, "max_channels": 256}
SMALL = {"target_shape": [16, 16, 16], "depth": 3, "base_channels": 4, "patches_per_epoch": 24, "amp": "off"}
SMALL |= {"device": "cpu", "num_workers": 0}
RESUMED = r"goes on after epoch (\d+)"


def voxtune(*words: object) -> list[str]:
    """Return the command."""
    return [sys.executable, "-m", "tune", *map(str, words)]


def children(pid: int) -> list[int]:
    """Return the ids of all processes below this one, the nearest first."""
    listing = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    pairs = [tuple(map(int, line.split())) for line in listing.splitlines()]
    found = [pid]
    for parent in found:
        found += [child for child, of in pairs if of == parent]
    return found[1:]


def trains(pid: int) -> str:
    """Return "rank" for one of several processes of a training, "worker" for one of Ray that trains, else ""."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""
    if "rank_link" in command:
        return "rank"
    return "worker" if re.match(r"ray::(ImplicitFunc|TrainingProcess)", command) else ""


def epochs_of(run: Path) -> dict[str, list[dict[str, str]]]:
    """Return the ended epochs of each training of a run or of its confirmation, by folder."""
    places = "trials/*", "confirm/trainings/*/*", "retrain/*"  # not all folders, of which some vanish meanwhile
    files = [file for place in places for file in sorted(run.glob(f"{place}/metrics.csv"))]
    return {str(file.parent.relative_to(run)): read_rows(file) for file in files}


def lose_one(command: list[str], run: Path, slots: int, kind: str) -> list[str]:
    """Run the command, kill one process of this kind when each slot has ended an epoch; return the cells of a row."""
    before = set(epochs_of(run))
    log = run.with_name(f"{command[3]}_{run.name}.log")
    with log.open("w") as file:
        environment = {**os.environ, "RAY_AUTH_MODE": "disabled"}
        process = subprocess.Popen(command, stdout=file, stderr=file, env=environment)
    ended: dict[tuple[str, int], float] = {}  # (training, epoch) -> when seen
    killed = 0.0
    while process.poll() is None:
        now = {name: rows for name, rows in epochs_of(run).items() if name not in before}
        for name, rows in now.items():
            ended.update({key: time.monotonic() for n in range(len(rows)) if (key := (name, n + 1)) not in ended})
        running = [rows for rows in now.values() if 0 < len(rows) < EPOCHS]
        if not killed and len(running) == slots:
            victims = [pid for pid in children(process.pid) if trains(pid) == kind]
            os.kill(victims[-1], signal.SIGKILL)
            killed, had = time.monotonic(), {name: len(rows) for name, rows in now.items()}
        time.sleep(0.05)
    if process.returncode or not killed:
        raise SystemExit(f"exit code {process.returncode}, killed: {bool(killed)}\n{log.read_text()[-3000:]}")
    new = {name: rows for name, rows in epochs_of(run).items() if name not in before}
    victim, epoch = resumed(run, list(new), log)
    whole = all([int(row["epoch"]) for row in rows] == list(range(1, EPOCHS + 1)) for rows in new.values())
    times = [float(row["epoch_time"]) + float(row["val_time"] or 0) for rows in new.values() for row in rows]
    wait = ended[victim, epoch + 1] - killed
    audit = subprocess.run(voxtune("verify", run), capture_output=True, text=True, check=False)
    clean = "clean" if audit.returncode == 0 else f"exit code {audit.returncode}"
    seconds = f"{wait:.1f}", f"{statistics.median(times):.1f}"
    return [kind, victim, str(len(new)), str(had[victim] - epoch), *seconds, "yes" if whole else "no", clean]


def resumed(run: Path, trainings: list[str], log: Path) -> tuple[str, int]:
    """Return the one training that has gone on, and after which epoch, by its log or that of the command."""
    logs = {name: path if (path := run / name / "stdout.log").exists() else log for name in trainings}
    found = [(name, int(epoch)) for name, path in logs.items() for epoch in re.findall(RESUMED, path.read_text())]
    [one] = found
    return one


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, default=4)
    parser.add_argument("--cpu", action="store_true", help="small networks on cores; --gpus then counts cores")
    args = parser.parse_args()
    train = TRAIN | (SMALL if args.cpu else {})
    space = {"optimizer": {"choice": ["adam", "adamw", "sgd"]}, "lr": {"loguniform": [1e-4, 1e-2]}}
    sweep = {"study": {"trials": 2 * args.gpus}, "early_stopping": {"type": "none"}, "train": train, "space": space}
    sweep["resources"] = {"gpu": 0 if args.cpu else 1, "cpu": 1 if args.cpu else 4}
    if args.cpu:
        os.environ["RAY_OVERRIDE_RESOURCES"] = json.dumps({"CPU": args.gpus, "GPU": args.gpus})
    heads = "one process of", "killed", "trainings", "ended epochs lost", "next epoch after, s", "an epoch, s"
    table = Table("", *heads, "each epoch once", "verify", box=None, header_style="bold")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "space.yaml").write_text(json.dumps(sweep))
        shape = (48, 48, 40) if args.cpu else (160, 160, 128)
        subprocess.run(voxtune("phantom", folder / "data", "--cases", 8, "--shape", *shape), check=True)
        launch = voxtune("launch", folder / "space.yaml", "--data", folder / "data", "--no_report")
        one, two = folder / "one", folder / "two"
        pairs = ["--set", "resources.gpu=2", "--set", f"study.trials={args.gpus}"]
        confirm = voxtune("confirm", one, "--top", 1, "--seeds", args.gpus)
        retrain = voxtune("retrain", one, "--gpus", args.gpus, "--name", "again", "--trial", 0)
        for title, words, run, slots, kind in (
            ("a sweep", [*launch, "--out", str(one)], one, args.gpus, "worker"),
            ("two GPUs per trial", [*launch, "--out", str(two), *pairs], two, args.gpus // 2, "rank"),
            ("a confirmation", confirm, one, args.gpus, "worker"),
            ("a retraining", retrain, one, 1, "rank"),
        ):
            row = [title, *lose_one(words, run, slots, kind)]
            table.add_row(*row)
            print(*row, sep="  ", file=sys.stderr, flush=True)
    make_console().print(table)


if __name__ == "__main__":
    main()
