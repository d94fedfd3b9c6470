"""The cost of the data path: patches per second of prepare_batch, and of reading and preparing together.

    python benchmarks/augmentation_cost.py [--tree DIR] [--data DIR] [--sizes 64 128] [--device cpu]

Needs torch, numpy, nibabel, scipy and pydantic. --tree is a checkout of another commit whose code is measured in place
of this one's, for a comparison on the same machine. --data is a folder of cases; by default four phantoms of the size
of BraTS's are made. A row is the median over epochs of --patches patches: without augmentation, with the default, at
strength 2, with each patch moved. prepare_batch gets batches that are in memory; the whole path reads them ahead in
--workers threads. On a GPU the memory is the peak of torch's allocator.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
KINDS: dict[str, dict[str, Any]] = {
    "none": {"augment": False},
    "default": {},
    "strength 2": {"augment_strength": 2.0},
    "all moved": {"rotate_prob": 1.0, "zoom_prob": 1.0},
}
BATCH = 2


def median_rate(epoch: Callable[[int], int], repeats: int, device: torch.device) -> float:
    """Return the median of patches per second. epoch: prepares an epoch's patches and returns their number."""
    rates = []
    for number in range(repeats + 1):
        started = time.perf_counter()
        count = epoch(number)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        rates.append(count / (time.perf_counter() - started))
    return statistics.median(rates[1:])


def measure(cache: Path, size: int, kind: str, arguments: argparse.Namespace) -> tuple[float, float, float]:
    """Return patches/s of prepare_batch and of the whole path, and MiB of GPU memory at the peak."""
    from trainable.core.config import TrainConfig
    from trainable.data.batches import prefetch_to_device, prepare_batch
    from trainable.data.patches import PatchLoader

    device = torch.device(arguments.device)
    config = TrainConfig(
        target_shape=(size,) * 3, batch_size=BATCH, num_workers=arguments.workers, patches_per_epoch=arguments.patches,
        epochs=99, amp="bf16", device=arguments.device, **KINDS[kind],
    )  # fmt: skip
    names = sorted(path.name for path in cache.iterdir() if (path / "case.json").exists())
    loader = PatchLoader(cache, names, config, pin_memory=device.type == "cuda")
    batches = list(loader.epoch(0))

    def prepare_only(_: int) -> int:
        for batch in batches:
            prepare_batch(batch, config, device, 0)
        return arguments.patches

    def whole(epoch: int) -> int:
        return sum(len(x) for x, _ in prefetch_to_device(loader.epoch(epoch), config, device, epoch))

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    rates = [median_rate(epoch, arguments.repeats, device) for epoch in (prepare_only, whole)]
    peak = torch.cuda.max_memory_allocated() / 2**20 if device.type == "cuda" else 0.0
    return rates[0], rates[1], peak


def parse_arguments() -> argparse.Namespace:
    """Return the arguments of this call."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tree", type=Path, default=ROOT)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--patches", type=int, default=32)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    return parser.parse_args()


def main() -> None:
    """Print one table."""
    arguments = parse_arguments()
    sys.path.insert(0, str(arguments.tree.resolve()))
    from trainable.core.config import TrainConfig
    from trainable.data.phantom import write_phantoms
    from trainable.data.prepare import prepare_data

    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder, "cache")
        if arguments.data is None:
            arguments.data = Path(folder, "phantoms")
            write_phantoms(arguments.data, cases=4, shape=(240, 240, 155))
        prepare_data(TrainConfig(data_dir=arguments.data, cache_dir=cache), quiet=True)
        print(f"{arguments.tree.resolve()}, {arguments.device}, batches of {BATCH}, {arguments.workers} threads")
        print(f"{'size':>6}  {'augmentation':12}  {'prepare_batch/s':>15}  {'whole path/s':>12}  {'GPU MiB':>8}")
        for size in arguments.sizes:
            for kind in KINDS:
                prepared, whole, peak = measure(cache, size, kind, arguments)
                print(f"{size:>6}  {kind:12}  {prepared:15.2f}  {whole:12.2f}  {peak:8.0f}", flush=True)


if __name__ == "__main__":
    main()
