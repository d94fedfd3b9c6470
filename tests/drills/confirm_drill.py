"""Kills a confirmation at random moments until it is done; its scores and verdict must equal those of one never killed.

    python tests/drills/confirm_drill.py [--kills 10] [--seed 0]

Each kill is a kill -9, of the driver or of a process that trains, somewhere from the driver's start into its trainings.
Prints per kill what was killed and which epochs the trainings had done.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "tests"))
from drill_command import run_drill  # noqa: E402
from helpers import SPACE, start, voxtune  # noqa: E402

from trainable.core.locks import is_locked  # noqa: E402
from trainable.data.phantom import write_phantoms  # noqa: E402
from trainable.training.training_log import read_rows  # noqa: E402
from tune.confirmation.verify import verify_confirmation  # noqa: E402
from tune.run.results import read_run  # noqa: E402
from tune.run.verify import verify  # noqa: E402

TWO_CORES = {"RAY_OVERRIDE_RESOURCES": '{"CPU": 2}', "PYTHONPATH": str(ROOT)}
OPTIONS = ("--top", "2", "--seeds", "3", "--epochs", "10")
PID = re.compile(r"process (\d+) ")


def epochs_done(run: Path) -> int:
    """Number of rows that all trainings of a confirmation have written."""
    return sum(len(read_rows(path)) for path in run.glob("confirm/trainings/*/*/metrics.csv"))


def training_pids(run: Path) -> list[int]:
    """The processes that train now, by the locks of their folders."""
    locks = sorted(run.glob("confirm/trainings/*/*/.lock"))
    texts = [path.read_text() for path in locks if is_locked(path.parent)]
    return [int(match[1]) for text in texts if (match := PID.match(text))]


def wait_for_epochs(process: subprocess.Popen[str], run: Path, epochs: int) -> bool:
    """Wait until so many epochs are done in all; return False if the confirmation ends before."""
    while epochs_done(run) < epochs:
        if process.poll() is not None:
            return False
        time.sleep(0.02)
    return True


def kill_once(process: subprocess.Popen[str], run: Path, rng: random.Random) -> str:
    """Kill the driver or a process that trains; return which, "" if the confirmation has ended before."""
    epochs = rng.choice([0, 1, 1, 2, 4])
    if not wait_for_epochs(process, run, epochs_done(run) + epochs):
        return ""
    time.sleep(rng.uniform(0, 0.6 if epochs else 8))
    pids = training_pids(run)
    if process.poll() is not None:
        return ""
    if pids and rng.random() < 0.5:
        os.kill(rng.choice(pids), signal.SIGKILL)
        return "a training"
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    return "the driver"


def drill(folder: Path, kills: int, seed: int) -> bool:
    """Run the drill. Returns True if all kills came before the end and scores and verdict are equal."""
    write_phantoms(folder / "data", cases=12, shape=(48, 48, 40), workers=1)
    space = folder / "space.yaml"
    space.write_text(SPACE)
    whole, killed = folder / "whole", folder / "killed"
    words = ["launch", space, "--data", folder / "data", "--out", whole, "--set", "resources.max_failures=5"]
    done = voxtune(*words, **TWO_CORES)
    assert done.returncode == 0, done.stdout + done.stderr
    shutil.copytree(whole, killed)
    done = voxtune("confirm", whole, *OPTIONS, **TWO_CORES)
    assert done.returncode == 0, done.stdout + done.stderr
    rng, life = random.Random(seed), None
    command = ("-m", "tune", "confirm", killed, *OPTIONS)
    print(" kill  what          epochs done")
    for number in range(1, kills + 1):
        if life is None or life.poll() is not None:
            life = start(*command, **TWO_CORES)
        what = kill_once(life, killed, rng)
        print(f"{number:5}  {what or 'ended before':12}  {epochs_done(killed):11}", flush=True)
        if not what:
            break
    if life is None or life.poll() is not None:
        life = start(*command, **TWO_CORES)
    output, _ = life.communicate()
    assert life.returncode == 0, output
    return bool(what) and same(whole, killed)


def same(whole: Path, killed: Path) -> bool:
    """Compare what both have found; verify the one that was killed."""
    contents = [json.loads((run / "confirm/confirm.json").read_text()) for run in (whole, killed)]
    names = ("chosen", "ended", "dropped", "errors", "validation", "test")
    verdicts = {name: contents[0][name] == contents[1][name] for name in names}
    scores = [(run / "confirm/scores.csv").read_text() for run in (whole, killed)]
    verdicts["scores.csv"] = scores[0] == scores[1]
    run = read_run(killed)
    verdicts["verify"] = not any((verify(run) | verify_confirmation(run)).values())
    rows = sum(len(text) for text in (scores[0].splitlines(),)) - 1
    print(
        f"the same as never killed, {rows} rows: "
        + ", ".join(f"{n} {'yes' if v else 'NO'}" for n, v in verdicts.items())
    )
    return all(verdicts.values())


if __name__ == "__main__":
    sys.exit(run_drill(drill, __doc__, kills=10))
