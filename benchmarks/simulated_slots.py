"""A sweep of many trials on 100 simulated slots: what its driver takes, early and late, and what it writes.

    python benchmarks/simulated_slots.py [--trials 1000] [--slots 100] [--hours 1] [--set KEY=VALUE] [--profile FILE]

The driver is the real one, with all that it does: launch of `brats` on a real Ray cluster of as many slots, Ray Tune's
own controller, journal, early stopping, screen, files, checkpoints. What is simulated are the processes of the trials,
of which 100 do not fit on a small machine: they answer to Ray's controller at once, in the order in which trials of
--hours per 100 epochs would, with a made-up curve and a checkpoint of some KiB. So the sweep runs as fast as its driver
can. CPU seconds are those of the driver without what the simulation itself takes; what depends on the clock, such as
the live table once a second, counts less per trial than in a sweep of days. A trial is told when it has ended, by
itself or stopped early.
"""

from __future__ import annotations

import argparse
import cProfile
import heapq
import itertools
import os
import resource
import shutil
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar
from unittest import mock

import numpy as np
from common import prepare_phantoms, scored_epoch
from ray.air.execution._internal.tracked_actor import TrackedActor
from ray.train._internal.session import _TrainingResult
from ray.tune import Checkpoint
from rich.table import Table

from trainable.core.console import make_console
from trainable.training import checkpoint
from trainable.training.epoch_result import EndReason
from trainable.training.training_dir import BEST
from tune.driver.processes.worker import SIGN_OF_LIFE
from tune.driver.sweep import launch
from tune.run.run_dir import RunDir
from tune.search.asha import CONTINUE
from tune.spec.sweep_file import load_sweep_config

CHUNK = 100  # trials whose CPU time is compared

ACTOR = SimpleNamespace(get_auto_filled_metrics=SimpleNamespace(remote=lambda **_: {}))  # all that Ray asks of one


@dataclass
class SimulatedProcess:
    """A process that trains one trial after another. epoch: the last one that it has reported of its trial."""

    spec: dict[str, Any]
    storage: Any
    epoch: int = 0
    told_where: bool = False
    last: _TrainingResult | None = None


class SimulatedProcesses:
    """Stands in for Ray's manager of the trials' processes, on a clock of its own.

    epochs, validation: of a training, and from one validation to the next. seconds: of an epoch.
    """

    epochs, validation, seconds, slots = 100, 5, 36.0, 100
    cpu = now = 0.0
    checkpoints: ClassVar[dict[int, Path]] = {}

    def __init__(self, **_: Any) -> None:
        self.events: list[tuple[float, int, TrackedActor, Callable[[], None]]] = []
        self.order, self._live_actors_to_ray_actors_resources = itertools.count(), {}
        self.processes: dict[TrackedActor, SimulatedProcess] = {}
        self.pending: list[TrackedActor] = []
        self.num_actor_tasks = 0

    num_live_actors = property(lambda self: len(self._live_actors_to_ray_actors_resources))
    num_pending_actors = property(lambda self: len(self.pending))
    num_total_actors = property(lambda self: len(self.processes))

    def add_event(self, seconds: float, actor: TrackedActor, call: Callable[[], None]) -> None:
        """Have `call` called after so much simulated time, unless the events of its process are dropped before."""
        heapq.heappush(self.events, (type(self).now + seconds, next(self.order), actor, call))

    def next(self, timeout: float | None = None) -> bool:
        """Start what has room, and hand out the next event; False if there is none."""
        while self.pending and self.num_live_actors < self.slots:
            actor = self.pending.pop(0)
            self._live_actors_to_ray_actors_resources[actor] = (ACTOR, None)
            self.add_event(7.0, actor, partial(actor._on_start, actor))
        if not self.events:
            return False
        type(self).now, _, _, call = heapq.heappop(self.events)
        call()
        return True

    def add_actor(self, cls: Any, kwargs: dict[str, Any], resource_request: Any, **callbacks: Any) -> TrackedActor:
        """Note that a process is wanted."""
        actor = TrackedActor(next(self.order), **callbacks)
        self.processes[actor] = SimulatedProcess(kwargs["config"], kwargs["storage"])
        self.pending.append(actor)
        return actor

    def remove_actor(self, tracked_actor: TrackedActor, kill: bool = False, stop_future: Any = None) -> bool:
        """End a process."""
        was_alive = self._live_actors_to_ray_actors_resources.pop(tracked_actor, None) is not None
        self.processes.pop(tracked_actor, None)
        self.pending = [actor for actor in self.pending if actor != tracked_actor]
        self.clear_actor_task_futures(tracked_actor)
        if was_alive and tracked_actor._on_stop:
            self.add_event(0.1, tracked_actor, partial(tracked_actor._on_stop, tracked_actor))
        return was_alive

    def is_actor_started(self, tracked_actor: TrackedActor) -> bool:
        """Return whether a process has started."""
        return tracked_actor in self._live_actors_to_ray_actors_resources

    def is_actor_failed(self, tracked_actor: TrackedActor) -> bool:
        """None fails."""
        return False

    def get_live_actors_resources(self) -> dict[str, float]:
        """Return what the processes hold."""
        return {"CPU": float(self.num_live_actors)}

    def clear_actor_task_futures(self, tracked_actor: TrackedActor) -> None:
        """Drop the events of a process."""
        self.events = [event for event in self.events if event[2] != tracked_actor]
        heapq.heapify(self.events)

    def cleanup(self) -> None:
        """End all."""
        self.events.clear()

    def schedule_actor_task(
        self, tracked_actor: TrackedActor, method_name: str, args: Any = (), kwargs: Any = None,
        on_result: Any = None, on_error: Any = None, _return_future: bool = False,
    ) -> None:  # fmt: skip
        """Do what a trial's process would do, and have the answer handed out when it is there."""
        began = time.thread_time()
        process, seconds, answer = self.processes[tracked_actor], 0.0, None
        if method_name == "reset":
            process = SimulatedProcess(args[0], kwargs["storage"], told_where=False)
            self.processes[tracked_actor], answer = process, True
        elif method_name == "train":
            seconds, answer = self.train(process)
        elif method_name == "save":
            answer = process.last
        if on_result:
            self.add_event(seconds, tracked_actor, partial(on_result, tracked_actor, answer))
        type(self).cpu += time.thread_time() - began

    def train(self, process: SimulatedProcess) -> tuple[float, dict[str, Any]]:
        """Return the next report of a trial, and after how many simulated seconds it comes."""
        spec = process.spec
        if not process.told_where:
            process.told_where = True
            where = {**SIGN_OF_LIFE, "host": f"node{spec['number'] % self.slots // 8:02d}", "gpus": []}
            return 1.0, {**where, "done": False, "training_iteration": 1}
        if process.epoch >= self.epochs:
            return 0.1, {"__duplicate__": True, "done": True}
        process.epoch += self.validation
        score = self.score(spec, process.epoch)
        reason = EndReason.EPOCHS if process.epoch >= self.epochs else EndReason.NONE
        result = scored_epoch(process.epoch, score, Path(), best=(score, process.epoch), end_reason=reason)
        row = {**result.row(), "log": f"epoch {process.epoch}: {score:.4f}\n", "device": "simulated", "data": ""}
        process.storage._update_checkpoint_index(row)
        folder = Path(process.storage.checkpoint_fs_path)
        folder.mkdir(parents=True)
        os.link(self.checkpoints[process.epoch], folder / BEST)
        process.last = _TrainingResult(Checkpoint(str(folder)), row)
        seconds = self.seconds * self.validation * (0.8 + 0.4 * (spec["number"] * 0.618 % 1))
        rays = {"done": False, "training_iteration": process.epoch, "should_checkpoint": True}
        return seconds, {**row, **rays, "time_this_iter_s": seconds, "checkpoint_dir_name": folder.name}

    def score(self, spec: dict[str, Any], epoch: int) -> float:
        """A curve that early stopping and a searcher can learn from."""
        recipe = spec["recipe"]
        rng = np.random.default_rng([spec["number"], epoch])
        best = {"sgd": -2.0}.get(recipe["optimizer"], -3.3)
        end = 0.9 - 0.08 * abs(np.log10(recipe["lr"]) - best) - 0.01 * (recipe["scheduler"] == "step")
        return float(max(0.01, end * (1 - 0.6 * np.exp(-epoch / 15)) + 0.004 * rng.normal()))


def make_checkpoints(folder: Path) -> dict[int, Path]:
    """Write one checkpoint per validated epoch, which trials link to."""
    found = {}
    for epoch in range(SimulatedProcesses.validation, SimulatedProcesses.epochs + 1, SimulatedProcesses.validation):
        found[epoch] = folder / f"{epoch}.pth"
        checkpoint.save_checkpoint({"epoch": epoch, "row": {"epoch": epoch}, "config": {}}, found[epoch], fsync=False)
    return found


def run_sweep(args: argparse.Namespace, run_dir: Path, scratch: Path) -> list[tuple[float, float]]:
    """Run the sweep; return the CPU seconds of the driver and the simulated time when each trial had ended."""
    prepare_phantoms(scratch / "data", scratch / "cache")
    config = load_sweep_config(
        "brats",
        [f"study.trials={args.trials}", "resources.gpu=0", "resources.cpu=1", "train.device=cpu", "train.amp=off",
         "train.num_workers=0", "train.depth=3", "train.base_channels=4", f"train.data_dir={scratch / 'data'}",
         f"train.cache_dir={scratch / 'cache'}", *args.set],
    )  # fmt: skip
    SimulatedProcesses.epochs, SimulatedProcesses.validation = config.fixed("epochs"), config.fixed("val_freq")
    SimulatedProcesses.seconds = args.hours * 3600 / SimulatedProcesses.epochs
    SimulatedProcesses.slots, SimulatedProcesses.checkpoints = args.slots, make_checkpoints(scratch)
    ended: list[tuple[float, float]] = []

    def on_report(number: int, report: Any, decision: str) -> None:
        if report["end_reason"] or decision != CONTINUE:
            ended.append((time.process_time() - SimulatedProcesses.cpu, SimulatedProcesses.now))

    with mock.patch("ray.tune.execution.tune_controller.RayActorManager", SimulatedProcesses):
        launch(config, run_dir, on_report=on_report, storage=str(scratch / "storage"))
    return ended


def sizes(run_dir: Path, storage: Path) -> dict[str, tuple[int, float]]:
    """Return the number of files and their MiB by the first name below RUN, and of the storage."""
    found: Counter[str] = Counter()
    count: Counter[str] = Counter()
    for root, name in ((run_dir, ""), (storage, "storage")):
        for path in root.rglob("*"):
            if path.is_file():
                top = name or path.relative_to(root).parts[0]
                count[top] += 1
                found[top] += path.stat().st_size
    return {top: (count[top], found[top] / 2**20) for top in sorted(count, key=lambda top: -found[top])}


def main() -> None:
    """Run the sweep and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--slots", type=int, default=100)
    parser.add_argument("--hours", type=float, default=1.0, help="that a whole training takes, in simulated time")
    parser.add_argument("--set", action="append", default=[], help="KEY=VALUE of the sweep")
    parser.add_argument("--profile", type=Path, help="write cProfile's statistics of the driver to this file")
    args = parser.parse_args()
    os.environ["RAY_OVERRIDE_RESOURCES"] = f'{{"CPU": {args.slots}}}'
    scratch = Path(tempfile.mkdtemp())
    run_dir, began = scratch / "run", time.monotonic()
    try:
        profile = cProfile.Profile() if args.profile else None
        ended = profile.runcall(run_sweep, args, run_dir, scratch) if profile else run_sweep(args, run_dir, scratch)
        wall = time.monotonic() - began
        if profile:
            profile.dump_stats(args.profile)
        print_tables(args, ended, wall, RunDir(run_dir), scratch / "storage")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def print_tables(
    args: argparse.Namespace, ended: list[tuple[float, float]], wall: float, run_dir: RunDir, storage: Path
) -> None:
    """Print what the driver took per trial, and what it has written."""
    times = Table("trials", "driver's CPU per trial, ms", "its share of one core", box=None, header_style="bold")
    for first in range(0, len(ended) - CHUNK // 2, CHUNK):
        part = ended[first : first + CHUNK]
        count = len(part) - 1
        cpu, simulated = (part[-1][kind] - part[0][kind] for kind in (0, 1))
        times.add_row(f"{first + 1} to {first + len(part)}", f"{1000 * cpu / count:.1f}", f"{cpu / simulated:.4%}")
    files = Table("in RUN", "files", "MiB", "KiB per trial", box=None, header_style="bold")
    for name, (count, size) in sizes(run_dir.path, storage).items():
        files.add_row(name, str(count), f"{size:.1f}", f"{1024 * size / len(ended):.1f}")
    console = make_console()
    print(f"{__doc__}\n{len(ended)} trials told on {args.slots} simulated slots; {args.hours:g} h per training")
    console.print(times)
    cpu = [b[0] - a[0] for a, b in itertools.pairwise(ended)]
    print(f"median {1000 * statistics.median(cpu):.1f} ms; simulation: {SimulatedProcesses.cpu:.1f} s left out")
    console.print(files)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{wall:.0f} s, {SimulatedProcesses.now / 3600:.1f} h simulated; driver's peak memory {memory:.0f} MiB")


if __name__ == "__main__":
    main()
