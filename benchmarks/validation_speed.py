"""A whole volume predicted by overlapping windows on one GPU, ours and MONAI's: ms, share of the card's peak, memory.

    python benchmarks/validation_speed.py [--shapes 240x240x155 140x172x148]

Windows of 128^3 that overlap by half and are blended by a Gaussian, over a normalised volume of four channels on the
GPU: the whole grid of a BraTS case, and a box around a brain, to which both sides crop where they validate.
Both networks are those of benchmarks/step_throughput.py. MONAI's goes through sliding_window_inference, four windows at
a time, as one writes it; "plain" is ours with fast=false. A row is the median of 20 volumes after 8, timed by events.
"""

from __future__ import annotations

import argparse
import sys

import torch
from rich.table import Table
from step_throughput import OurStep, Step, measure, monai_network, peak
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from trainable.core.config import TrainConfig
from trainable.core.console import make_console
from trainable.core.device import kernel_selection
from trainable.evaluation.inference import predict_logits
from trainable.evaluation.sliding_window import window_starts

SIZE, BATCH, OVERLAP = 128, 2, 0.5


def our_prediction(volume: Tensor, *, fast: bool) -> Step:
    """As voxtune validates, without Dice and pictures."""
    step = OurStep(SIZE, BATCH, fast=fast, overlap=OVERLAP)

    def predict() -> None:
        with kernel_selection(step.config):
            predict_logits(step.training.network, volume, step.config)

    return predict


def monai_prediction(volume: Tensor, dtype: torch.dtype) -> Step:
    """As one writes it with MONAI."""
    from monai.inferers import sliding_window_inference

    network = monai_network().eval()

    def predict() -> None:
        with torch.no_grad(), torch.autocast("cuda", dtype):
            sliding_window_inference(volume, [SIZE] * 3, 4, network, overlap=OVERLAP, mode="gaussian")

    return predict


def teraflop_of_window() -> float:
    """TFLOP of a window's forward pass."""
    predict = our_prediction(torch.zeros(1, 4, SIZE, SIZE, SIZE, device="cuda"), fast=False)
    with FlopCounterMode(display=False) as counter:
        predict()
    return counter.get_total_flops() / 1e12


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["240x240x155", "140x172x148"], help="of volumes")
    asked = parser.parse_args()
    top, work = peak(), teraflop_of_window()
    print(f"{torch.cuda.get_device_name()}, bf16 matrix product: {top:.0f} TFLOP/s\n{__doc__}")
    table = Table("volume", "windows", "prediction", "ms", "times as fast", "% of peak", "GiB", box=None)
    for text in asked.shapes:
        shape = tuple(map(int, text.split("x")))
        volume = torch.randn(1, 4, *shape, device="cuda", generator=torch.Generator("cuda").manual_seed(0))
        per_axis = [len(window_starts(max(length, SIZE), SIZE, OVERLAP)) for length in shape]
        windows = per_axis[0] * per_axis[1] * per_axis[2]
        sides = {
            "MONAI fp16 AMP": lambda volume=volume: monai_prediction(volume, torch.float16),
            "MONAI bf16": lambda volume=volume: monai_prediction(volume, torch.bfloat16),
            "voxtune plain, bf16": lambda volume=volume: our_prediction(volume, fast=False),
            "voxtune, bf16": lambda volume=volume: our_prediction(volume, fast=True),
        }
        first = 0.0
        for name, make in sides.items():
            with kernel_selection(TrainConfig()):  # cudnn tries its kernels out, but where ours asks it not to
                ms, gib, _ = measure(make)
            share = 100 * windows * work / (ms / 1000) / top
            first = first or ms
            table.add_row(text, str(windows), name, f"{ms:.1f}", f"{first / ms:.2f}", f"{share:.0f}", f"{gib:.2f}")
            print(f"{text} {name}: {ms:.1f} ms", file=sys.stderr, flush=True)
    make_console().print(table)


if __name__ == "__main__":
    main()
