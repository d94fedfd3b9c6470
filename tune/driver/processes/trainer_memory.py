"""Memory of a process that trains one recipe after another: what a training leaves there, and what others hold."""

from __future__ import annotations

import gc

import torch

TAKEN_MEMORY_PAUSE = 10.0  # seconds before a training whose memory others hold is restarted
MAX_LEAKED_BYTES = 64 * 2**20  # of GPU memory that a process may keep between trainings
MAX_PINNED_BYTES = 2 * 2**30  # of pinned memory that it may keep: freeing and pinning again takes 0.5 s per GiB


class GpuMemoryTakenError(RuntimeError):
    """A training ran out of GPU memory since processes that do not belong to it hold a part of its share."""


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
