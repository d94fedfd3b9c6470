"""Who holds the memory of a GPU when it has run out: this process, or processes that are none of its business."""

from __future__ import annotations

import os
import subprocess

import torch

CUDA_CONTEXT_BYTES = int(0.75 * 2**30)  # that a process needs besides torch's tensors: CUDA's context, its kernels
TOLERANCE_BYTES = 2**30  # that a desktop, and CUDA itself beyond that, may hold without a word
NVIDIA_SMI = ["nvidia-smi", "--query-compute-apps=pid,used_memory,name", "--format=csv,noheader,nounits"]
NVIDIA_SMI_TIMEOUT = 20  # seconds


def bytes_taken_by_others(*, free: int, own: int, total: int, share: float) -> int:
    """Return how many bytes of a process's share of a GPU other processes hold; 0 if the share was there to be had.

    A process that runs out of memory although all of its share was free or its own needs more than that. If others hold
    a part of its share, it is not known what it needs.

    Args:
        free: bytes of the GPU that no process holds.
        own: bytes that this process holds, CUDA's own included.
        total: bytes of the GPU.
        share: of the GPU that this process was promised; above 1 as 1.
    """
    missing = int(min(share, 1.0) * total) - own - free
    return missing if missing > TOLERANCE_BYTES else 0


def memory_taken_by_others(share: float) -> str:
    """Return which processes hold a part of this process's share of its GPU, in a sentence; "" if none does.

    To be called where this process runs out of memory, while the tensors are still there. A process that has not used a
    GPU has run out of none.
    """
    if not torch.cuda.is_initialized():
        return ""
    free, total = torch.cuda.mem_get_info()
    own = torch.cuda.memory_reserved() + CUDA_CONTEXT_BYTES
    taken = bytes_taken_by_others(free=free, own=own, total=total, share=share)
    if not taken:
        return ""
    card = torch.cuda.get_device_properties(torch.cuda.current_device())
    return (
        f"other processes hold {(total - free - own) / 2**30:.1f} of the {total / 2**30:.1f} GiB of {card.name}, "
        f"{taken / 2**30:.1f} of them promised to this one: {list_gpu_processes(f'GPU-{card.uuid}')}"
    )


def full_gpu(error: torch.OutOfMemoryError) -> str:
    """Return a message on a GPU whose memory has run out other than in a training: who holds it, and what to do."""
    parts = ["out of GPU memory", str(error).splitlines()[0].rstrip("."), memory_taken_by_others(1)]
    return (
        f"{': '.join(filter(None, parts))}. Free memory, take another GPU with CUDA_VISIBLE_DEVICES, or the CPU: "
        "predict --device cpu, other verbs with CUDA_VISIBLE_DEVICES=-1"
    )


def list_gpu_processes(uuid: str) -> str:
    """Return the other processes on a GPU as nvidia-smi lists them, in words. uuid: of the GPU, with its GPU-."""
    command = [*NVIDIA_SMI, "-i", uuid]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=NVIDIA_SMI_TIMEOUT)
    except (OSError, subprocess.SubprocessError) as error:
        return f"nvidia-smi cannot name them ({error})"
    return describe_processes(done.stdout, os.getpid()) or "nvidia-smi names none of them, as in a container"


def describe_processes(listing: str, own_pid: int) -> str:
    """Return the processes in a listing of NVIDIA_SMI, but for one, in words; "" if there are none.

    Args:
        listing: a line "pid, MiB, name" per process; MiB may be a text, such as [N/A].
        own_pid: of the process that is left out.
    """
    rows = [[cell.strip() for cell in line.split(",", 2)] for line in listing.splitlines()]
    others = [row for row in rows if len(row) == 3 and row[0] != str(own_pid)]
    return "; ".join(f"pid {pid} ({name}) {size}{' MiB' * size.isdigit()}" for pid, size, name in others)
