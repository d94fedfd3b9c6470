"""The device of a training: its choice, precision, memory format and kernels."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from trainable.core.config import TrainConfig
from trainable.core.errors import InputError


def choose_device(config: TrainConfig) -> torch.device:
    """The device that a config asks for."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise InputError("device is 'cuda', but torch sees no CUDA GPU here; use --device cpu or auto")
    return torch.device("cpu" if config.device == "cpu" or not torch.cuda.is_available() else "cuda")


AMP_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}  # what the option amp computes in on a GPU


def autocast(config: TrainConfig, device: torch.device) -> torch.autocast:
    """Mixed precision as the config asks, on a GPU; the CPU always computes in float32."""
    dtype = AMP_DTYPES.get(config.amp)
    return torch.autocast(device.type, dtype, enabled=dtype is not None and device.type == "cuda")


def to_network_format(x: Tensor, config: TrainConfig) -> Tensor:
    """A batch (N, 4, D, H, W) in the layout and precision that a fast network computes in on a GPU."""
    return x.to(**input_format(config, x.device))


def input_format(config: TrainConfig, device: torch.device) -> dict[str, Any]:
    """How a network reads its input, as torch's functions take it: device, dtype, memory_format."""
    if not (config.fast and device.type == "cuda"):
        return {"device": device, "dtype": torch.float32, "memory_format": torch.contiguous_format}
    return {
        "device": device,
        "dtype": AMP_DTYPES.get(config.amp, torch.float32),
        "memory_format": torch.channels_last_3d,
    }


@contextlib.contextmanager
def kernel_selection(config: TrainConfig) -> Iterator[None]:
    """How kernels are chosen in a training; then as before.

    Of those for a fast training in mixed precision, cudnn names the fastest itself; to have it try all takes seconds in
    each process. In plain PyTorch it does not, and in float32 it names some that no CUDA graph can hold. With
    `deterministic` they repeat bit for bit.
    """
    before = torch.backends.cudnn.benchmark, torch.are_deterministic_algorithms_enabled()
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS repeats itself with this alone
    named = config.fast and config.amp != "off"
    torch.backends.cudnn.benchmark = not (named or config.deterministic)
    use_deterministic_algorithms(config.deterministic)
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before[0]
        use_deterministic_algorithms(before[1])


def use_deterministic_algorithms(wanted: bool) -> None:
    """torch's own, which imports its compiler, called where it changes something."""
    now = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    if now != (wanted, False):
        torch.use_deterministic_algorithms(wanted)
