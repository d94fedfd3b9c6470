"""The bare training step on one GPU, ours and MONAI's DynUNet: patches per second, memory, share of the card's peak.

    python benchmarks/step_throughput.py [--sizes 128x2 96x1 64x1] [--compiled] [--profile]

A step: forward, Dice and cross-entropy on four heads, backward, clipping, AdamW. Both networks have 32, 64, 128, 256,
320 and 320 channels, plain blocks and deep supervision, and get the same random patches, which are on the GPU. A row is
the median of 20 steps after 8, timed by events. MONAI's is written as one writes it, with its own DynUNet, AMP, and a
fused AdamW; with --compiled also channels last under torch.compile (a minute more). "plain" is ours with fast=false.
FLOP are counted by torch, the peak is what a matrix product of 8192 x 8192 in bf16 reaches here.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from rich.table import Table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from trainable.core.config import TrainConfig
from trainable.core.console import make_console
from trainable.core.device import kernel_selection, to_network_format
from trainable.training.state import TrainingState

CHANNELS = [32, 64, 128, 256, 320, 320]
Step = Callable[[], object]
StepOn = Callable[[Tensor, Tensor], object]


class OurStep:
    """A step of voxtune's trainer."""

    def __init__(self, size: int, batch: int, **options: Any) -> None:
        self.config = TrainConfig(
            target_shape=(size, size, size), batch_size=batch, deep_supervision=True, optimizer="adamw",
            gradient_clipping=1.0, **{"amp": "bf16", **options},
        )  # fmt: skip
        self.training = TrainingState(self.config)
        self.training.network.train()
        x, y = patches(size, batch)
        self.x, self.y = x, y > 0

    def __call__(self) -> None:
        self.training.train_step.forward_backward(to_network_format(self.x, self.config), self.y, 1.0)
        self.training.train_step.update()

    @property
    def pool(self) -> int:
        """Bytes that a captured step takes, which torch's statistics do not see."""
        return self.training.train_step.graph_pool_bytes


def monai_network() -> nn.Module:
    """MONAI's DynUNet, of the same size as ours."""
    from monai.networks.nets import DynUNet

    count = len(CHANNELS)
    strides = [1] + [2] * (count - 1)
    return DynUNet(
        3, 4, 3, [3] * count, strides, strides[1:], filters=CHANNELS, deep_supervision=True, deep_supr_num=3,
        norm_name=("INSTANCE", {"affine": True}),
    ).cuda()  # fmt: skip


def monai_step(dtype: torch.dtype, *, last: bool = False, compiled: bool = False) -> StepOn:
    """A step with MONAI's DynUNet. last: channels last."""
    network = monai_network().train()
    layout = torch.channels_last_3d if last else torch.contiguous_format
    network.to(memory_format=layout)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)
    scaler = torch.amp.GradScaler("cuda", enabled=dtype == torch.float16)
    forward = torch.compile(network) if compiled else network

    def step(x: Tensor, y: Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", dtype=dtype):
            heads = torch.unbind(forward(x.contiguous(memory_format=layout)), 1)
        scaler.scale(usual_loss(heads, y)).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()

    return step


def on_patches(step: StepOn, size: int, batch: int) -> Step:
    """A step on the same patches again and again."""
    x, y = patches(size, batch)
    return lambda: step(x, y)


def usual_loss(heads: tuple[Tensor, ...], target: Tensor) -> Tensor:
    """Dice and cross-entropy in float32, the heads weighted 1, 1/2, 1/4, ...; MONAI's heads are all of full size."""
    total = torch.zeros((), device=target.device)
    for level, logits in enumerate(heads):
        logits = logits.float()
        prob, axes = logits.sigmoid(), (0, 2, 3, 4)
        dice = 1 - (2 * (prob * target).sum(axes) + 1e-5) / (prob.sum(axes) + target.sum(axes) + 1e-5)
        total = total + (dice.mean() + F.binary_cross_entropy_with_logits(logits, target)) / 2**level
    return total


def patches(size: int, batch: int) -> tuple[Tensor, Tensor]:
    """Random patches and targets."""
    draw = torch.Generator("cuda").manual_seed(0)
    x = torch.randn(batch, 4, size, size, size, device="cuda", generator=draw)
    return x, (torch.rand(batch, 3, size, size, size, device="cuda", generator=draw) > 0.9).float()


def measure(make: Callable[[], Step]) -> tuple[float, float, float]:
    """Median ms of a step, GiB allocated at most, seconds of the first 8 steps."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    started = time.monotonic()
    step = make()
    for _ in range(8):
        step()
    torch.cuda.synchronize()
    warm = time.monotonic() - started
    events = [torch.cuda.Event(enable_timing=True) for _ in range(21)]
    events[0].record()
    for event in events[1:]:
        step()
        event.record()
    torch.cuda.synchronize()
    times = [one.elapsed_time(other) for one, other in pairwise(events)]
    peak = torch.cuda.max_memory_allocated() + (step.pool if isinstance(step, OurStep) else 0)
    return statistics.median(times), peak / 2**30, warm


def peak() -> float:
    """TFLOP/s of a large matrix product in bf16."""
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)

    def product() -> Step:
        return lambda: a @ a

    ms, _, _ = measure(product)
    return 2 * 8192**3 / ms / 1e9


def teraflop(size: int) -> float:
    """TFLOP of a patch, forward and backward."""
    step = OurStep(size, 1, fast=False)
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops() / 1e12


def profile(step: Step, steps: int = 5) -> None:
    """Print where the GPU's time of a step goes, by the largest kernels."""
    for _ in range(8):
        step()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as found:
        for _ in range(steps):
            step()
        torch.cuda.synchronize()
    times, calls = Counter[str](), Counter[str]()
    for event in found.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            times[event.name] += event.device_time_total / steps / 1000
            calls[event.name] += 1
    print(f"\nGPU time of a step: {sum(times.values()):.2f} ms in {sum(calls.values()) / steps:.0f} kernels")
    for name, ms in times.most_common(24):
        print(f"{ms:8.3f} ms {calls[name] / steps:6.1f} x  {name[:110]}")


def variants(size: int, batch: int, *, compiled: bool) -> dict[str, Callable[[], Step]]:
    """The rows of the table for one size."""
    rows: dict[str, Callable[[], Step]] = {
        "MONAI fp16 AMP": lambda: on_patches(monai_step(torch.float16), size, batch),
        "MONAI bf16": lambda: on_patches(monai_step(torch.bfloat16), size, batch),
    }
    if compiled:
        last = {"last": True, "compiled": True}
        rows["MONAI bf16, compiled"] = lambda: on_patches(monai_step(torch.bfloat16, **last), size, batch)
    return rows | {
        "voxtune plain, bf16": lambda: OurStep(size, batch, fast=False),
        "voxtune, bf16": lambda: OurStep(size, batch),
        "voxtune, fp16": lambda: OurStep(size, batch, amp="fp16"),
    }


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["128x2", "96x1", "64x1"], help="patch x batch")
    parser.add_argument("--compiled", action="store_true", help="also MONAI's under torch.compile")
    parser.add_argument("--profile", action="store_true", help="where the time of our step goes")
    asked = parser.parse_args()
    top = peak()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, cudnn {torch.backends.cudnn.version()}")
    print(f"bf16 matrix product: {top:.0f} TFLOP/s\n{__doc__}")
    table = Table(
        "patch, batch", "step", "ms", "patches/s", "times the first", "% of peak", "GiB", "first 8 steps, s", box=None
    )
    with kernel_selection(TrainConfig()):
        for text in asked.sizes:
            size, batch = map(int, text.split("x"))
            work = teraflop(size)
            first = 0.0
            for name, make in variants(size, batch, compiled=asked.compiled).items():
                ms, gib, warm = measure(make)
                rate = 1000 * batch / ms
                first = first or rate
                row = f"{ms:.1f}", f"{rate:.1f}", f"{rate / first:.2f}", f"{100 * rate * work / top:.0f}", f"{gib:.2f}"
                table.add_row(text, name, *row, f"{warm:.1f}")
                print(f"{text} {name}: {rate:.1f} patches/s", file=sys.stderr, flush=True)
            if asked.profile:
                profile(OurStep(size, batch))
    make_console().print(table)


if __name__ == "__main__":
    main()
