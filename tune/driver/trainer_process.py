"""A process that trains one recipe after another, for a sweep or a set of trainings: its thread and its memory."""

from __future__ import annotations

import gc
import platform
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch

from trainable.core.errors import InputError
from trainable.core.files import FULL_DISK_ERRNOS
from trainable.data.cache import CacheError

TAKEN_MEMORY_PAUSE = 10.0  # seconds before a training whose memory others hold is restarted
MAX_LEAKED_BYTES = 64 * 2**20  # of GPU memory that a process may keep between trainings
MAX_PINNED_BYTES = 2 * 2**30  # of pinned memory that it may keep: freeing and pinning again takes 0.5 s per GiB


class GpuMemoryTakenError(RuntimeError):
    """A training ran out of GPU memory since processes that do not belong to it hold a part of its share."""


class NodeTroubleError(InputError):
    """What is wrong with a machine, by its name, so that other trainings would meet it there too."""


@contextmanager
def trouble_of_this_node() -> Iterator[None]:
    """Raise NodeTroubleError for a CacheError or a full disk in this context."""
    try:
        yield
    except (CacheError, OSError) as error:
        if not (trouble := node_trouble(error)):
            raise
        raise NodeTroubleError(trouble) from None


def node_trouble(error: Exception) -> str:
    """Return what is wrong with this or another machine, by its name, if that is what an error says; else ""."""
    if isinstance(error, NodeTroubleError):
        return str(error)
    if isinstance(error, CacheError):
        return f"the cache on {platform.node()}: {error}"
    if isinstance(error, OSError) and error.errno in FULL_DISK_ERRNOS:
        return f"a full disk on {platform.node()}: {error}"
    return ""


def run_in_trainer_thread(work: Callable[[], Any]) -> Any:
    """Return work(), called in the one thread of this process that trains, which is kept for all its trials.

    Ray gives each trial a new thread, but what cudnn has planned is kept per thread, and takes a while to plan.
    """
    return trainer_thread().submit(work).result()


@lru_cache(1)
def trainer_thread() -> ThreadPoolExecutor:
    """Return the executor of the thread that trains in this process, always the same one."""
    return ThreadPoolExecutor(1, "trainer")


@lru_cache(1)
def freeze_imports() -> None:
    """Exclude what this process has imported before the first call from garbage collection; do nothing in later calls.

    Collecting these objects took 0.3 s per trial.
    """
    gc.collect()
    gc.freeze()


def free_memory() -> int:
    """Free what a trial has left in its process, also in cycles of references, as of an exception with its traceback.

    Returns:
        Bytes of GPU memory that tensors still occupy; 0 if this process has not used a GPU.
    """
    gc.collect()
    if not torch.cuda.is_initialized():
        return 0
    if (clear_workspaces := getattr(torch._C, "_cuda_clearCublasWorkspaces", None)) is not None:
        clear_workspaces()  # torch has no public function for it
    torch.cuda.empty_cache()
    if torch.cuda.memory.host_memory_stats().get("allocated_bytes.current", 0) > MAX_PINNED_BYTES:
        empty_host_cache()  # of blocks of other sizes, which trials of other recipes had
    return torch.cuda.memory_allocated()


def empty_host_cache() -> None:
    """Free the pinned memory that no tensor uses."""
    public = getattr(torch.accelerator, "empty_host_cache", None)  # torch 2.11 has only the private one
    empty = public or getattr(torch._C, "_host_emptyCache", None)
    if empty is not None:
        empty()


def device_name() -> str:
    """Return the name of the GPU that this process has used; of the CPU if it has used none."""
    return torch.cuda.get_device_name() if torch.cuda.is_initialized() else f"CPU, {platform.machine()}"
