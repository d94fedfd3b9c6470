"""The processes that train together on several GPUs or nodes: a trial's own process, or that of a training, keeps them.

This module does without Ray, as those processes do.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trainable.core.config import TrainConfig
from trainable.core.gpu_memory import memory_taken_by_others
from trainable.core.locks import hold_shared_lock
from trainable.core.rank_group import RankGroup
from trainable.core.ranks import gather
from tune.driver.processes.gpu_share import missing_gpu
from tune.driver.processes.node_trouble import NodeTroubleError
from tune.driver.processes.trainer_memory import MAX_LEAKED_BYTES, TAKEN_MEMORY_PAUSE, GpuMemoryTakenError, free_memory
from tune.driver.processes.trainer_thread import run_in_trainer_thread


class LeftMemoryError(RuntimeError):
    """The training before has left GPU memory occupied in one of the processes."""


@dataclass(frozen=True)
class Places:
    """Where processes train together: as many on each of several nodes, the first ones on this one.

    cpu: number of CPU cores on each node, for all processes there.
    """

    nodes: int
    processes: int
    cpu: int

    @property
    def threads(self) -> int:
        """CPU threads of each process."""
        return max(1, self.cpu // self.processes)


_groups: list[RankGroup] = []  # the one of this process, or none yet


def run_in_ranks(
    places: Places,
    work: Callable[..., Any],
    config: TrainConfig,
    *arguments: Any,
    on_message: Callable[[Any], object],
) -> Any:
    """Call RankGroup.run with `work(link, config, *arguments)`, in processes that are kept for the next training.

    They are replaced if the training before has left GPU memory occupied.

    Raises: as RankGroup.run; LostNodeError means that this process is to end, as its nodes are not all there.
    """
    try:
        return group_of(places, config).run(work, config, *arguments, on_message=on_message)
    except LeftMemoryError:
        return group_of(places, config).run(work, config, *arguments, on_message=on_message)
    except GpuMemoryTakenError:
        time.sleep(TAKEN_MEMORY_PAUSE)  # before it is restarted
        raise


def group_of(places: Places, config: TrainConfig) -> RankGroup:
    """Return this process's group, a new one if there is none that can be used."""
    if not (_groups and _groups[0].usable):
        end_ranks()
        # In a thread that lasts as long as this process does, as they end with it.
        _groups.append(run_in_trainer_thread(lambda: make_group(places, cuda=config.device != "cpu")))
    return _groups[0]


def make_group(places: Places, *, cuda: bool) -> RankGroup:
    """Return a new group of processes.

    Raises:
        NodeTroubleError: if torch does not see a GPU here for each process that is to be here.
        Others: as group_of_trial, if they are on several nodes.
    """
    from tune.driver.processes.node_ranks import group_of_trial  # here, as it imports Ray

    if cuda and (missing := missing_gpu(places.processes)):  # perhaps since the last training
        raise NodeTroubleError(missing)
    if places.nodes == 1:
        return RankGroup(places.processes, cuda=cuda, threads=places.threads)
    return group_of_trial(places.nodes, places.processes, cuda=cuda, threads=places.threads)


def end_ranks() -> None:
    """End the processes that this one has started to train together, if any."""
    while _groups:
        _groups.pop().close()


def prepare_rank(lock_file: Path) -> None:
    """Hold a shared lock on a file until this process ends, and free what the training before has left.

    Raises:
        LeftMemoryError: if more than MAX_LEAKED_BYTES of GPU memory stay occupied in any of the processes.
    """
    hold_shared_lock(lock_file)
    if (left := max(gather(free_memory()))) > MAX_LEAKED_BYTES:
        raise LeftMemoryError(f"{left / 2**20:.0f} MiB of GPU memory were left by the training before")


def name_memory_holders(work: Callable[[], object]) -> None:
    """Call work(); if it runs out of GPU memory that other programs hold, raise GpuMemoryTakenError, which names them.

    Each process has a whole GPU.
    """
    try:
        work()
    except torch.cuda.OutOfMemoryError:
        if taken := memory_taken_by_others(1):
            raise GpuMemoryTakenError(taken) from None
        raise
