"""The processes that a set of trainings runs in: one per slot of the cluster, kept for one training after another.

They are Ray actors, not tasks: a task that follows another in a warm process may be given another GPU, which a process
that has used CUDA cannot change to; and a process that is free starts the next training at once.
"""

from __future__ import annotations

import math
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from trainable.core.logger import logger
from tune.driver.cluster.connection import Slots
from tune.driver.cluster.node_request import NodeRequest
from tune.driver.processes.training_process import TrainingProcess, TrainingSpec
from tune.spec.sections import Resources

MAX_FAILED_STARTS = 3  # of processes in a row, after which no more are started
START_PAUSE = 5.0  # seconds after a failed start without another: by then Ray knows that a node is lost
FREE_SECONDS = 60.0  # after which a free process ends if there are more than trainings: other programs get its GPU


@dataclass
class PooledProcess:
    """A process of the pool.

    place: what is reserved for it. starting: what Ray answers once it can train; None from then on. busy: it trains.
    free_since: when it began to wait for a training, if it does.
    """

    actor: Any
    place: PlacementGroup
    starting: Any
    busy: bool = False
    free_since: float = field(default_factory=time.monotonic)

    @property
    def free(self) -> bool:
        """Whether it can train and does not."""
        return self.starting is None and not self.busy


class ProcessPool:
    """Processes that train on the connected cluster, as many as fit on it at most.

    Args:
        resources: of one process; gpu is a number.
        lock_file: on which each holds a shared lock until it ends.

    Raises:
        InputError: if not even one process fits on the cluster.
    """

    def __init__(self, resources: Resources, lock_file: Path) -> None:
        self.resources, self.lock_file = resources, lock_file
        self.slots = Slots.of(resources)
        self.request = NodeRequest(self.slots)
        self.processes: list[PooledProcess] = []
        self.failed_starts = 0
        self.failed_at = -math.inf  # when the last one failed, by time.monotonic
        self.trouble = ""  # why no training can run in these processes

    def fit_to(self, wanted: int) -> None:
        """Start processes until there are `wanted`, or as many as fit on the cluster; ask for nodes for the others.

        Of more than `wanted` processes those end that have been free for FREE_SECONDS. None is started for START_PAUSE
        after one that could not start.
        """
        self.request.ask_for(wanted)
        idle = [one for one in self.processes if one.free and time.monotonic() > one.free_since + FREE_SECONDS]
        for process in idle[: max(0, len(self.processes) - wanted)]:
            self.remove(process)
        if time.monotonic() < self.failed_at + START_PAUSE:
            return
        for _ in range(min(wanted, self.slots.count()) - len(self.processes)):
            cpu, gpu, nodes = self.resources.cpu, self.resources.gpu_share, self.resources.nodes
            place = self.slots.reserve()
            first = PlacementGroupSchedulingStrategy(place, placement_group_bundle_index=0)
            options: dict[str, Any] = {"num_cpus": cpu, "num_gpus": gpu, "max_restarts": 0, "max_task_retries": 0}
            make = ray.remote(**options, scheduling_strategy=first)(TrainingProcess)
            actor: Any = make.remote(cpu, gpu, str(self.lock_file), nodes)
            self.processes.append(PooledProcess(actor, place, actor.prepare.remote()))

    @property
    def starting(self) -> list[Any]:
        """What Ray answers once a starting process can train, of each."""
        return [process.starting for process in self.processes if process.starting is not None]

    def note_started(self, answer: Any) -> None:
        """Note that a process has started, by its answer, or could not start."""
        process = next(process for process in self.processes if process.starting is answer)
        process.starting, process.free_since = None, time.monotonic()
        try:
            self.trouble = self.trouble or ray.get(answer)
            self.failed_starts = 0
        except ray.exceptions.RayError as error:
            self.remove(process)
            self.failed_starts += 1
            self.failed_at = time.monotonic()
            logger.warning(f"a process for trainings ended as it started: {str(error).splitlines()[0]}")
            if self.failed_starts >= MAX_FAILED_STARTS:
                self.trouble = self.trouble or f"{self.failed_starts} processes that ended as they started: {error}"

    def free(self) -> PooledProcess | None:
        """Return a process that can train and does not; None if there is none."""
        return next((process for process in self.processes if process.free), None)

    def run(self, process: PooledProcess, spec: TrainingSpec) -> Any:
        """Start a training in a free process; return what Ray answers with its TrainingEnd."""
        process.busy = True
        return process.actor.run.remote(spec)

    def release(self, process: PooledProcess) -> None:
        """Make a process free for the next training, or end it if resources.reuse_processes is off."""
        process.busy, process.free_since = False, time.monotonic()
        if not self.resources.reuse_processes:
            self.remove(process)

    def remove(self, process: PooledProcess) -> None:
        """End a process, with what it trains."""
        ray.kill(process.actor, no_restart=True)
        remove_placement_group(process.place)
        self.processes.remove(process)

    def close(self) -> None:
        """End all processes, and ask for no more nodes."""
        self.request.close()
        with suppress(ray.exceptions.RayError):  # of a lost cluster, with which they end
            for process in list(self.processes):
                self.remove(process)
