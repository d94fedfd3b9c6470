"""Trials on several GPUs: how fast the GPUs of a stopped trial train the next one, and what kill -9 of a process costs.

    python benchmarks/trials_on_gpus.py [--data DATA] [--gpu 2] [--trials 12] [--size 128] [--patches 100]
    python benchmarks/trials_on_gpus.py --cpu --trials 6 --size 16 --patches 24

A real sweep with ASHA on all GPUs of this machine; of trial 0 one process is killed after its first epoch. With --cpu
Ray claims as many GPUs as a trial takes, and the processes train on the CPU. Without DATA the cases are phantoms. The
first table has a row per trial that was stopped: seconds from the decision to the start of the next trial on its GPUs,
and to the beginning of that trial's training (its first report less its epoch and validation).
"""

from __future__ import annotations

import argparse
import csv
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml
from rich.table import Table

from trainable.core.console import make_console
from trainable.data.phantom import write_phantoms
from tune.run.events import Event, EventKind, read_events
from tune.run.results import read_run
from tune.run.run_dir import RunDir
from tune.run.verify import verify

KILLED_TRIAL = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--gpu", type=int, default=2)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--patches", type=int, default=100)
    parser.add_argument("--cpu", action="store_true")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = asked.data or Path(folder) / "phantoms"
        if asked.data is None:
            write_phantoms(data, cases=8, shape=(48, 48, 40) if asked.cpu else (240, 240, 155))
        measure(asked, data, Path(folder))


def measure(asked: argparse.Namespace, data: Path, folder: Path) -> None:
    """Run the sweep, kill a process of it, and print what was seen."""
    space = folder / "space.yaml"
    space.write_text(yaml.safe_dump(sweep_of(asked, folder / "cache")))
    claimed = {"RAY_OVERRIDE_RESOURCES": f'{{"CPU": 1, "GPU": {asked.gpu}}}'} if asked.cpu else {}
    run = RunDir(folder / "run")
    words = ["-m", "tune", "launch", space, "--data", data, "--out", run.path, "--no_report"]
    sweep = subprocess.Popen([sys.executable, *map(str, words)], env={**os.environ, **claimed})
    rows, killed = dict[int, list[tuple[float, dict[str, str]]]](), 0.0
    while sweep.poll() is None:
        note_rows(run, rows)
        if not killed and rows.get(KILLED_TRIAL):
            killed = kill_one(sweep.pid, run, asked.gpu)
        time.sleep(0.05)
    note_rows(run, rows)
    if sweep.returncode:
        sys.exit(sweep.returncode)
    events = read_events(run.events)
    print_handovers(events, rows)
    print_kill(events, rows, killed)
    findings = [line for lines in verify(read_run(run.path)).values() for line in lines]
    print("verify:", "; ".join(findings) or "clean")


def sweep_of(asked: argparse.Namespace, cache: Path) -> dict[str, object]:
    """Return the sections of the sweep's YAML."""
    train = {
        "epochs": 4, "batch_size": 2, "accumulation_steps": max(1, asked.gpu // 2), "patches_per_epoch": asked.patches,
        "target_shape": [asked.size] * 3, "cache_dir": str(cache), "val_fraction": 0.4, "test_fraction": 0.0,
    }  # fmt: skip
    small = {"depth": 3, "base_channels": 4, "num_workers": 0, "device": "cpu"}
    return {
        "study": {"trials": asked.trials, "seed": 1},
        "early_stopping": {"type": "asha", "grace_period": 1, "reduction_factor": 2, "min_trials": 1},
        "resources": {"gpu": asked.gpu, "cpu": 1 if asked.cpu else 4 * asked.gpu},
        "train": train | (small if asked.cpu else {"amp": "bf16"}),
        "space": {"lr": {"loguniform": [1e-5, 1e-2]}, "optimizer": {"choice": ["adam", "sgd"]}},
    }


def note_rows(run: RunDir, rows: dict[int, list[tuple[float, dict[str, str]]]]) -> None:
    """Add the new rows of all trials' metrics.csv, with the time at which they were seen."""
    for path in run.trials.glob("*/metrics.csv"):
        known = rows.setdefault(int(path.parent.name), [])
        known += [(time.time(), row) for row in list(csv.DictReader(path.open()))[len(known) :]]


def kill_one(driver: int, run: RunDir, count: int) -> float:
    """Kill one of the processes that train KILLED_TRIAL; return the time, 0 if they are not to be found."""
    held = [event for event in read_events(run.events) if event.kind == EventKind.TRIAL_STARTED]
    gpus = next(event.gpus for event in reversed(held) if event.trial == KILLED_TRIAL)
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            variables = dict(part.split("=", 1) for part in (folder / "environ").read_text().split("\0") if "=" in part)
            command = (folder / "cmdline").read_text()
        except (OSError, UnicodeDecodeError):
            continue
        visible = variables.get("CUDA_VISIBLE_DEVICES", "")
        own = sorted(visible.split(",")) == sorted(map(str, gpus))
        if own and "rank_link" in command and descends_from(int(folder.name), driver):
            os.kill(int(folder.name), signal.SIGKILL)
            print(f"kill -9 of process {folder.name}, one of {count} of trial {KILLED_TRIAL} on GPU {visible}")
            return time.time()
    return 0.0


def descends_from(pid: int, ancestor: int) -> bool:
    """Return whether a process is one of another's, by any number of generations."""
    while pid > 1 and pid != ancestor:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return pid == ancestor


def began(rows: list[tuple[float, dict[str, str]]], after: float) -> float:
    """Return when the epoch began whose row was the first to be seen after a time; NaN if there is none."""
    for seen, row in rows:
        if seen > after:
            return seen - float(row["epoch_time"]) - float(row["val_time"] or 0)
    return float("nan")


def print_handovers(events: list[Event], rows: dict[int, list[tuple[float, dict[str, str]]]]) -> None:
    """Print how soon after each stop the GPUs had the next trial, and trained it."""
    table = Table("stopped", "next", "GPUs", "started after s", "trained after s")
    running = dict[int, tuple[int, ...]]()
    for index, event in enumerate(events):
        if event.kind == EventKind.TRIAL_STARTED and event.trial is not None:
            running[event.trial] = event.gpus
        if event.kind != EventKind.TRIAL_STOPPED or event.trial is None:
            continue
        later = (one for one in events[index:] if one.kind == EventKind.TRIAL_STARTED)
        if (follower := next((one for one in later if one.gpus == running[event.trial]), None)) is not None:
            trained = began(rows[follower.trial or 0], follower.time) - event.time
            gpus = ", ".join(map(str, follower.gpus))
            numbers = f"{follower.time - event.time:.2f}", f"{trained:.2f}"
            table.add_row(str(event.trial), str(follower.trial), gpus, *numbers)
    make_console().print(table)


def print_kill(events: list[Event], rows: dict[int, list[tuple[float, dict[str, str]]]], killed: float) -> None:
    """Print what the killed trial has lost."""
    own = [event for event in events if event.trial == KILLED_TRIAL and event.time > killed]
    for event in own[:3]:
        print(f"{event.time - killed:7.2f} s after the kill: trial {event.trial} {event.text}")
    seen, row = next((seen, row) for seen, row in rows[KILLED_TRIAL] if seen > killed)
    print(f"{began(rows[KILLED_TRIAL], killed) - killed:7.2f} s after the kill: epoch {row['epoch']} began again")
    print(f"{seen - killed:7.2f} s after the kill: epoch {row['epoch']} reported; it takes {row['epoch_time']} s")


if __name__ == "__main__":
    main()
