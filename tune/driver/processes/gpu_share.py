"""The share of a GPU, or the GPUs, that Ray has reserved for a process: its memory, and whether torch sees them."""

from __future__ import annotations

import os
import platform

import torch

from trainable.core.device import missing_gpu_reason
from trainable.core.gpu_memory import CUDA_CONTEXT_BYTES
from tune.spec.sections import processes_per_node


def share_memory(share: float) -> None:
    """Limit this process to a share of the GPU's memory, so that the other trials on this GPU keep theirs.

    share: between 0 and 1, both excluded, CUDA's own memory included; for other values, or without a GPU, no limit.
    """
    if 0 < share < 1 and torch.cuda.is_available():
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(max(share - CUDA_CONTEXT_BYTES / total, share / 2))


def missing_gpu(gpu_share: float) -> str:
    """Return what is reserved, that torch sees fewer GPUs all the same, and what to do; "" if torch sees as many.

    gpu_share: share of a GPU, or number of GPUs, that Ray has reserved for this process.
    """
    reserved = f"resources.gpu: {gpu_share:g} GPU{'s are' if gpu_share > 1 else ' is'} reserved on {platform.node()}"
    if reason := missing_gpu_reason():
        return (
            f"{reserved}, but torch sees none there ({reason}); look at `nvidia-smi` there and install the build of "
            "torch that fits its driver, or launch with --set resources.gpu=0 to train on the CPU"
        )
    if (seen := torch.cuda.device_count()) < processes_per_node(gpu_share):
        return (
            f"{reserved}, but torch sees {seen} of them (CUDA_VISIBLE_DEVICES="
            f"{os.environ.get('CUDA_VISIBLE_DEVICES', '')!r}); look at `nvidia-smi` there: restart the node if a GPU "
            "has fallen off the bus, or start Ray there with the --num-gpus that are left"
        )
    return ""
