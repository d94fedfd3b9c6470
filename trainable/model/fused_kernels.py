"""Whether the Triton kernels are used in place of plain PyTorch."""

from __future__ import annotations

import os
import shutil
from functools import lru_cache
from importlib.util import find_spec

import torch

from trainable.core.config import TrainConfig
from trainable.core.device import choose_device
from trainable.core.logger import logger


def has_fused_kernels(config: TrainConfig) -> bool:
    """Return whether a config's network uses the Triton kernels: on a GPU with `fast`, if they work there."""
    return config.fast and choose_device(config).type == "cuda" and kernels_work()


@lru_cache(1)
def kernels_work() -> bool:
    """Return whether the Triton kernels work on this process's GPU, tried in the first call; a warning says why not."""
    if reason := triton_failure(torch.device("cuda")):
        logger.warning(f"plain PyTorch is used instead of the fused kernels, which is slower: {reason}")
    return not reason


def triton_failure(device: torch.device) -> str:
    """Compile and run one small kernel and compare its result; return why that fails, in a line, or "" if it does not.

    Triton (torch for CUDA on Linux brings it along) needs a C compiler ($CC, gcc or clang) and Python.h.
    """
    if find_spec("triton") is None:
        return "Triton is not installed"
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return "Triton needs a C compiler; install gcc or clang, or set CC"
    a, b = (torch.full((1, 3, 2, 2, 2), value, device=device) for value in (1.0, 2.0))
    try:
        from trainable.model.kernels.join import Join

        joined = Join.apply(a, b)
    except torch.OutOfMemoryError:  # it says nothing of Triton
        raise
    except Exception as error:  # of the compiler, the linker, the driver: each has its own type
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return f"Triton cannot compile or run a kernel: {lines[-1].strip()}"
    same = torch.equal(joined, torch.cat([a, b], dim=1))
    return "" if same else "a Triton kernel gives wrong numbers here"
