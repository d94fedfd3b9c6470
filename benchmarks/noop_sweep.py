"""Sweeps whose trials do nothing: trials per second of voxtune and of plain Ray Tune, and whether they get slower.

    python benchmarks/noop_sweep.py [--trials 500] [--fresh 60]

A trial reports one score and a checkpoint of some bytes. Both sides: TPE over five options, ASHA, as many trials at a
time as there are cores, real Ray processes that serve one trial after the other; plain Ray (OptunaSearch, in memory,
its own snapshots) also with its default of one process per trial, of which --fresh trials are enough. voxtune as
shipped: its journal, metrics, TensorBoard files, checks and live table. The time is that of the whole sweep without
Ray's own start; the first and last hundred are timed by when their trials ended.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from common import prepare_phantoms, scored_epoch
from rich.table import Table

from trainable.core.config import TrainConfig
from trainable.core.console import make_console
from trainable.core.options import to_dict
from trainable.data.prepare import Data
from trainable.training import checkpoint
from trainable.training.epoch_result import EndReason, EpochResult
from trainable.training.step_progress import OnProgress
from trainable.training.training_dir import BEST

SPACE: dict[str, tuple[str, list[float]]] = {
    "lr": ("loguniform", [1e-5, 1e-2]),
    "weight_decay": ("loguniform", [1e-6, 1e-2]),
    "momentum": ("uniform", [0.8, 0.99]),
    "dropout": ("uniform", [0.0, 0.5]),
    "batch_size": ("randint", [1, 8]),
}
ENDED = "ended.txt"  # one line per trial: when it ended, in seconds


def score_of(config: dict[str, Any]) -> float:
    """A score that TPE can learn from."""
    return 0.8 - abs(config["dropout"] - 0.2) - abs(config["momentum"] - 0.9)


def note(folder: Path) -> None:
    """Log that a trial ends now."""
    with (folder / ENDED).open("a") as file:
        file.write(f"{time.time()}\n")


def nothing(
    config: TrainConfig,
    data: Data,
    on_epoch_end: Callable[[EpochResult], None],
    on_progress: OnProgress,
    *,
    folder: Path,
) -> EpochResult:
    """Replace trainable.training.loop.fit: one epoch, without training."""
    score, place = score_of(to_dict(config)), config.output_dir / "checkpoints"
    result = scored_epoch(1, score, place, best=(score, 1), end_reason=EndReason.EPOCHS)
    state = {"epoch": 1, "row": result.row(), "config": to_dict(config), "best_score": score}
    checkpoint.save_checkpoint(state, place / BEST, fsync=False)
    note(folder)
    on_epoch_end(result)
    return result


def run_voxtune(folder: Path, trials: int) -> None:
    """The sweep as voxtune runs it."""
    from tune.driver.sweep import launch
    from tune.spec.sweep_config import make_sweep_config

    data, cache = folder.parent / "data", folder.parent / "cache"
    train = {"epochs": 1, "optimizer": "sgd", "data_dir": str(data), "cache_dir": str(cache), "depth": 3}
    train |= {"target_shape": [16, 16, 16], "base_channels": 4, "num_workers": 0, "device": "cpu"}
    values = {"study": {"trials": trials}, "train": train, "resources": {"gpu": 0, "cpu": 1}}
    space = {name: {kind: ends} for name, (kind, ends) in SPACE.items()}
    launch(make_sweep_config({**values, "space": space}), folder / "run", fit=partial(nothing, folder=folder))


def trainable(config: dict[str, Any], folder: Path) -> None:
    """A trial of plain Ray, as its documentation teaches."""
    from ray import tune

    with tempfile.TemporaryDirectory() as place:
        Path(place, "state.json").write_text(json.dumps({"epoch": 1}))
        note(folder)
        tune.report({"score": score_of(config), "epoch": 1}, checkpoint=tune.Checkpoint.from_directory(place))


def run_plain(folder: Path, trials: int, *, reuse: bool) -> None:
    """The sweep as plain Ray Tune runs it."""
    import ray
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search.optuna import OptunaSearch

    ray.init(include_dashboard=False, log_to_driver=False)
    kinds = {"loguniform": tune.loguniform, "uniform": tune.uniform, "randint": lambda a, b: tune.randint(a, b + 1)}
    tune.Tuner(
        tune.with_resources(tune.with_parameters(trainable, folder=folder), {"cpu": 1}),
        param_space={name: kinds[kind](*ends) for name, (kind, ends) in SPACE.items()},
        tune_config=tune.TuneConfig(
            metric="score", mode="max", num_samples=trials, search_alg=OptunaSearch(seed=0),
            scheduler=ASHAScheduler(max_t=9), reuse_actors=reuse,
        ),
        run_config=tune.RunConfig(name="sweep", storage_path=str(folder), verbose=0),
    ).fit()  # fmt: skip


def measure(side: str, scratch: Path, trials: int) -> dict[str, float]:
    """Run a sweep in a new process; trials per second of all, of the first and of the last hundred."""
    folder = scratch / side.replace(" ", "_")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled"}
    command = [sys.executable, str(Path(__file__).resolve()), "--side", side, "--trials", str(trials), str(folder)]
    with (folder / "stdout.log").open("w") as out:
        if subprocess.run(command, stdout=out, stderr=out, env=environment, check=False).returncode:
            raise SystemExit((folder / "stdout.log").read_text()[-3000:])
    ended = sorted(map(float, (folder / ENDED).read_text().split()))
    hundred = min(100, len(ended) // 2)
    first, last = ended[hundred - 1] - ended[0], ended[-1] - ended[-hundred]
    return {
        "trials": len(ended),
        "all": (len(ended) - 1) / (ended[-1] - ended[0]),
        "first": (hundred - 1) / first,
        "last": (hundred - 1) / last,
    }


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--trials", type=int, default=500)
    parser.add_argument("--fresh", type=int, default=60, help="trials of plain Ray with one process per trial")
    asked = parser.parse_args()
    sides: dict[str, Callable[[Path, int], None]] = {
        "voxtune": run_voxtune,
        "plain Ray, reuse_actors": partial(run_plain, reuse=True),
        "plain Ray": partial(run_plain, reuse=False),
    }
    if asked.side:
        return sides[asked.side](asked.folder, asked.trials)
    table = Table("", "trials", "trials/s", "first 100", "last 100", "slower by", box=None, header_style="bold")
    with tempfile.TemporaryDirectory() as scratch:
        prepare_phantoms(Path(scratch) / "data", Path(scratch) / "cache")
        for side in sides:
            found = measure(side, Path(scratch), asked.fresh if side == "plain Ray" else asked.trials)
            rates = [f"{found[name]:.2f}" for name in ("all", "first", "last")]
            table.add_row(side, f"{found['trials']:.0f}", *rates, f"{found['first'] / found['last']:.2f}")
            print(f"{side}: {found}", file=sys.stderr, flush=True)
    print(f"{os.cpu_count()} cores\n{__doc__}")
    make_console().print(table)


if __name__ == "__main__":
    main()
