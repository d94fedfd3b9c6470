"""The device of a training: its choice, precision, memory format and cudnn's kernels."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Iterator
from typing import TypedDict

import torch
from torch import Tensor

from trainable.core.config import TrainConfig
from trainable.core.errors import InputError
from trainable.core.logger import logger
from trainable.core.ranks import local_gpu

AMP_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}  # dtype on a GPU, by the option amp


class InputFormat(TypedDict):
    """The format of a network's input, as keywords of torch's functions."""

    device: torch.device
    dtype: torch.dtype
    memory_format: torch.memory_format


def choose_device(config: TrainConfig) -> torch.device:
    """Return the device that a config requests; for "auto" a GPU if torch sees one, else the CPU.

    Of several processes that train together each gets another GPU.

    Raises:
        InputError: if device is "cuda" and torch sees no GPU.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        raise InputError("device is 'cuda', but torch sees no CUDA GPU here; use --device cpu or auto")
    return torch.device("cpu") if config.device == "cpu" or not torch.cuda.is_available() else local_gpu()


def missing_gpu_reason() -> str:
    """Return why torch sees no CUDA GPU here: its version and build, and its own error; "" if it sees one."""
    if torch.cuda.is_available():
        return ""
    build = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "built for the CPU only"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    restriction = "" if visible is None else f", CUDA_VISIBLE_DEVICES={visible!r}"
    try:
        torch.cuda.init()  # its error tells whether a driver is there, and whether it is too old
        error = "torch.cuda.is_available() is false"
    except (AssertionError, RuntimeError) as raised:
        error = str(raised).splitlines()[0]
    return f"torch {torch.__version__}, {build}{restriction}: {error}"


def autocast(config: TrainConfig, device: torch.device) -> torch.autocast:
    """Return the mixed-precision context of a config's `amp`; it changes nothing on the CPU, or if amp is off."""
    dtype = AMP_DTYPES.get(config.amp)
    return torch.autocast(device.type, dtype, enabled=dtype is not None and device.type == "cuda")


def input_format(config: TrainConfig, device: torch.device) -> InputFormat:
    """Return the format of a network's input on a device.

    On a GPU with `fast` that is amp's dtype and channels last, else float32 and contiguous.
    """
    if not (config.fast and device.type == "cuda"):
        return {"device": device, "dtype": torch.float32, "memory_format": torch.contiguous_format}
    return {
        "device": device,
        "dtype": AMP_DTYPES.get(config.amp, torch.float32),
        "memory_format": torch.channels_last_3d,
    }


def to_network_format(x: Tensor, config: TrainConfig) -> Tensor:
    """Return a batch (N, 4, D, H, W) in the `input_format` of its device."""
    return x.to(**input_format(config, x.device))


def check_precision(config: TrainConfig, device: torch.device) -> None:
    """Raise InputError if a GPU cannot train in the precision that a config requests."""
    if not computes_bf16(config, device):
        raise InputError(f"amp is 'bf16', which {torch.cuda.get_device_name()} cannot compute; use --amp fp16 or off")


def with_usable_precision(config: TrainConfig, device: torch.device) -> TrainConfig:
    """Return a config to predict with on a device: with amp off, which is said, if a GPU cannot compute in bf16."""
    if computes_bf16(config, device):
        return config
    logger.info(f"amp is off here: {torch.cuda.get_device_name()} cannot compute in bf16, so float32 is used")
    return config.model_copy(update={"amp": "off"})


def computes_bf16(config: TrainConfig, device: torch.device) -> bool:
    """Return whether a device can compute in bf16, or need not: GPUs before Ampere only emulate it, slowly."""
    needed = config.amp == "bf16" and device.type == "cuda"
    return not needed or torch.cuda.is_bf16_supported(including_emulation=False)


@contextlib.contextmanager
def kernel_selection(config: TrainConfig) -> Iterator[None]:
    """Set how cudnn selects its kernels while the context is open, and restore torch's settings afterwards.

    With `fast` and mixed precision cudnn's heuristic selects kernels: here it picks the fastest, and trying them all
    would take seconds per process. Otherwise all are tried: without `fast` the heuristic misses the fastest, and in
    float32 it picks some that a CUDA graph cannot capture. With `deterministic` none are tried, and only kernels
    that repeat bit for bit are used; the environment variable that this needs, if it was not set, stays set.
    """
    before = torch.backends.cudnn.benchmark, torch.are_deterministic_algorithms_enabled()
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only with this
    heuristic = config.fast and config.amp != "off"
    torch.backends.cudnn.benchmark = not (heuristic or config.deterministic)
    use_deterministic_algorithms(config.deterministic)
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before[0]
        use_deterministic_algorithms(before[1])


def use_deterministic_algorithms(wanted: bool) -> None:
    """Call torch's function of this name only if that changes a setting, since the call imports torch's compiler."""
    now = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    if now != (wanted, False):
        torch.use_deterministic_algorithms(wanted)


def device_name() -> str:
    """Return the name of the GPU that this process has used; of the CPU if it has used none."""
    return torch.cuda.get_device_name() if torch.cuda.is_initialized() else f"CPU, {platform.machine()}"
