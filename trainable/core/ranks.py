"""The processes that train one network together, one per GPU, as torchrun or another launcher starts them.

Each learns its place from the environment, as PyTorch's own programs do: RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and
MASTER_PORT. A process that was started alone is the trivial case: rank 0 of 1, and torch.distributed is not used.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from trainable.core.errors import InputError

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
LOST_CONNECTION = re.compile("connection|socket|remote process", re.IGNORECASE)  # in an error of torch.distributed
COLLECTIVE_TIMEOUT = timedelta(hours=1)  # of a sum over the ranks: one may still wait for a slow disk
WAIT_TIMEOUT = timedelta(days=7)  # of an exchange of values: rank 0 may prepare the cases of a whole data set
T = TypeVar("T")


@dataclass(frozen=True)
class Launch:
    """The place of this process among those that a launcher started.

    rank: from 0 to world_size - 1. local_rank: among those of this machine; also the index of its GPU.
    """

    rank: int
    world_size: int
    local_rank: int


_joined: Launch | None = None  # of this process, once it has joined the others
_group: dist.ProcessGroup | None = None  # of all ranks, for sums; None for the default one
_gpu = torch.device("cuda")  # of this process; for one alone the current one


def read_launch(environment: Mapping[str, str] = os.environ) -> Launch | None:
    """Return the place of this process by its environment; None if it was started alone, or as the only one.

    Raises:
        InputError: if the environment names several processes, and a variable is missing or no number.
    """
    if environment.get("WORLD_SIZE", "1") == "1":
        return None
    for name in VARIABLES:
        value = environment.get(name)
        if value is None or (name != "MASTER_ADDR" and not value.isdigit()):
            found = "is not set" if value is None else f"is {value!r}, not a number"
            raise InputError(
                f"WORLD_SIZE is {environment['WORLD_SIZE']}, for a training by several processes, but {name} {found}; "
                f"start it with torchrun, which sets {', '.join(VARIABLES)}, or unset WORLD_SIZE"
            )
    rank, world_size, local_rank = (int(environment[name]) for name in VARIABLES[:3])
    if rank >= world_size:
        raise InputError(f"RANK is {rank}, but WORLD_SIZE is {world_size}; ranks are 0 to WORLD_SIZE - 1")
    return Launch(rank, world_size, local_rank)


def join(launch: Launch, store: dist.Store | None, *, cuda: bool, all_gpus: bool = False) -> None:
    """Join the other processes: by NCCL, on the GPU of this process's local rank, or by gloo on CPUs.

    Args:
        store: one that all processes use; None if they have joined already, as Ray Train has them do.
        cuda: train on GPUs.
        all_gpus: this process sees the GPUs of all processes of its machine, though torchrun has not started it.

    Raises:
        InputError: if there is no GPU for this process.
    """
    global _joined, _group, _gpu
    device = _gpu_of(launch, all_gpus) if cuda else None
    if device is not None:
        torch.cuda.set_device(device)
        _gpu = device
    backend = "nccl" if cuda else "gloo"
    if store is None:
        _group = dist.new_group(backend=backend, timeout=COLLECTIVE_TIMEOUT)
    else:
        dist.init_process_group(
            backend, store=store, rank=launch.rank, world_size=launch.world_size, timeout=COLLECTIVE_TIMEOUT,
            device_id=device,
        )  # fmt: skip
    _joined = launch
    _control_group()


def started_by_torchrun() -> bool:
    """Return whether torchrun has started this process, and not another launcher."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def started_by_one_torchrun() -> bool:
    """Return whether torchrun has started all processes that train together here."""
    return started_by_torchrun() and os.environ.get("LOCAL_WORLD_SIZE") == str(world_size())


def _gpu_of(launch: Launch, all_gpus: bool) -> torch.device:
    """Return the GPU of a process: that of its local rank, or the only one that a batch system lets it see."""
    count = torch.cuda.device_count()
    own = count == 1 and not all_gpus and not started_by_torchrun()  # whose processes see all GPUs
    if not own and launch.local_rank >= count:
        advice = f"start one process per GPU: torchrun --nproc-per-node {count}"
        if all_gpus:
            advice = "look at `nvidia-smi` there, and restart the machine if a GPU has fallen off the bus"
        raise InputError(
            f"process {launch.local_rank + 1} of {platform.node()} has no GPU, as torch sees {count} there; {advice}"
        )
    return torch.device("cuda", 0 if own else launch.local_rank)


def rank() -> int:
    """Return this process's rank, from 0."""
    return _joined.rank if _joined else 0


def world_size() -> int:
    """Return the number of processes that train together; 1 for a process alone."""
    return _joined.world_size if _joined else 1


def is_main() -> bool:
    """Return whether this is the one process that writes files and prints: rank 0, or a process alone."""
    return rank() == 0


def local_gpu() -> torch.device:
    """Return the GPU of this process: that of its local rank, or the current one of a process alone."""
    return _gpu


@lru_cache(1)
def _control_group() -> dist.ProcessGroup:
    """Return the group of all ranks by which Python's values are exchanged, on CPUs."""
    return dist.new_group(backend="gloo", timeout=WAIT_TIMEOUT)


@lru_cache
def block_group(size: int) -> dist.ProcessGroup:
    """Return the group of `size` consecutive ranks that this one is in; all ranks must call it. size: a divisor."""
    blocks = [
        dist.new_group(list(range(first, first + size)), timeout=COLLECTIVE_TIMEOUT, backend=dist.get_backend(_group))
        for first in range(0, world_size(), size)
    ]
    return blocks[rank() // size]


def sum_over_ranks(tensor: Tensor, group: dist.ProcessGroup | None = None) -> None:
    """Add up a tensor in place over all ranks, or those of a group; it can be captured in a CUDA graph."""
    if _joined is not None:
        dist.all_reduce(tensor, group=group or _group)


def gather(value: T) -> list[T]:
    """Return the values of all ranks, in their order, on each of them; all wait for each other.

    value: any that can be pickled.
    """
    if _joined is None:
        return [value]
    values: list[Any] = [None] * _joined.world_size
    dist.all_gather_object(values, value, group=_control_group())
    return values


def from_main(value: T) -> T:
    """Return rank 0's value on each rank; the others wait for it, and what they give is not used."""
    if _joined is None:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0, group=_control_group())
    return values[0]


def is_lost_connection(error: BaseException) -> bool:
    """Return whether an exception may be what a process meets when another one has ended."""
    return isinstance(error, RuntimeError) and bool(LOST_CONNECTION.search(str(error)))
