"""Kills a training at random moments and resumes it, until it is done; its weights must equal an untouched one's.

    python tests/drills/kill_drill.py [--kills 20] [--seed 0]

Each kill is a kill -9 of train.py and of all processes that it has started. Prints per kill what was lost.
"""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch
from drill_command import run_drill

from trainable.data.phantom import write_phantoms
from trainable.training.checkpoint import load_checkpoint
from trainable.training.training_dir import LATEST
from trainable.training.training_log import read_rows

ROOT = Path(__file__).parents[2]
EPOCHS = 150
SMALL = "--depth 3 --base_channels 4 --target_shape 16 16 16 --device cpu --num_workers 1 --patches_per_epoch 24"
OPTIONS = (
    f"{SMALL} --optimizer adamw --lr 5e-3 --scheduler plateau --plateau_patience 1 --dropout 0.1 --deep_supervision"
)
OPTIONS += f" --accumulation_steps 2 --gradient_clipping 1.0 --save_freq 7 --epochs {EPOCHS}"


def start(*words: str) -> subprocess.Popen[str]:
    """Start train.py in a new process group."""
    command = [sys.executable, str(ROOT / "train.py"), *words]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, start_new_session=True
    )


def kill_after(process: subprocess.Popen[str], epochs: int, delay: float) -> list[int]:
    """kill -9 `delay` seconds after the given number of epochs of this process. Returns the epochs that it printed."""
    printed: list[int] = []
    assert process.stdout is not None
    while len(printed) < epochs:
        line = process.stdout.readline()
        assert line, "the training ended before it was killed"
        if match := re.match(r"epoch +(\d+)/", line):
            printed.append(int(match[1]))
    time.sleep(delay)
    os.killpg(process.pid, signal.SIGKILL)
    rest = process.communicate()[0]
    return printed + [int(epoch) for epoch in re.findall(r"^epoch +(\d+)/", rest, re.MULTILINE)]


def drill(folder: Path, kills: int, seed: int) -> bool:
    """Run the drill. Returns True if only epochs in progress were lost and the weights are equal."""
    write_phantoms(folder / "data", cases=8, shape=(48, 48, 40), workers=1)
    rng = random.Random(seed)
    common = ["--data_dir", str(folder / "data"), "--cache_dir", str(folder / "cache"), *OPTIONS.split()]
    whole = start(*common, "--output_dir", str(folder / "whole"))
    output = whole.communicate()[0]
    assert whole.returncode == 0, output
    out, good, done = folder / "killed", True, 0
    latest = out / "checkpoints" / LATEST
    print(f" kill  {'moment':24}  printed done  on disk  lost")
    for number in range(1, kills + 1):
        words = ["--resume", str(out)] if latest.exists() else [*common, "--output_dir", str(out)]
        epochs = rng.choice([0, 1, 1, 2, 3])  # with 0, somewhere from its start into its first epochs
        delay = rng.uniform(0, 0.6 if epochs else 7)
        printed = kill_after(start(*words), epochs, delay)
        before, done = done, load_checkpoint(latest)["epoch"] if latest.exists() else 0
        lost = sorted(set(printed) - set(range(1, done + 1)))
        repeated = [epoch for epoch in printed if epoch <= before]
        good &= not lost and not repeated
        moment = f"{delay:.2f} s after {f'epoch {printed[epochs - 1]}' if epochs else 'its start'}"
        print(f"{number:5}  {moment:24}  {max(printed, default=before):12}  {done:7}  {lost or 'nothing'}", flush=True)
    process = start("--resume", str(out))
    process.communicate()
    return good and process.returncode == 0 and same(folder / "whole", out)


def same(whole: Path, killed: Path) -> bool:
    """Compare the ends of both: weights bit for bit, optimizer, schedule, best epoch, and the rows of metrics.csv."""
    one, other = (load_checkpoint(folder) for folder in (whole, killed))
    verdicts = {"epoch": one["epoch"] == other["epoch"] == EPOCHS}
    verdicts["weights"] = all(torch.equal(one["network"][name], other["network"][name]) for name in one["network"])
    moments = [state["optimizer"]["state"] for state in (one, other)]
    verdicts["optimizer"] = all(
        torch.equal(value, moments[1][number][name])
        for number, values in moments[0].items()
        for name, value in values.items()
    )
    for name in ("step", "schedule", "best_score", "best_epoch", "validations_without_gain"):
        verdicts[name] = one[name] == other[name]
    rows = [
        [
            (row["epoch"], row["avg_total_loss"], row["val_dice_mean"], row["lr"])
            for row in read_rows(folder / "metrics.csv")
        ]
        for folder in (whole, killed)
    ]
    verdicts["metrics.csv"] = rows[0] == rows[1] and len(rows[0]) == EPOCHS
    print(
        "the same as untouched: " + ", ".join(f"{name} {'yes' if equal else 'NO'}" for name, equal in verdicts.items())
    )
    return all(verdicts.values())


if __name__ == "__main__":
    sys.exit(run_drill(drill, __doc__, kills=20))
