"""Training end to end on one GPU, from files on disk: patches per second of fit() and of the usual MONAI pipeline.

    python benchmarks/fit_throughput.py [--data DATA] [--cases 12] [--patches 240] [--epochs 4]

The cases in DATA, or phantoms of 240 x 240 x 155 voxels; patches of 128^3, two a step, augmentation on. Ours is fit()
with the recipe of search_spaces/brats.yaml's `train:` section: workers, normalisation, augmentation, statistics,
checkpoints and validation of whole volumes included; "training" leaves validation and checkpoints out, "all" is the
wall time of the epochs. MONAI's is the tutorials' way: dictionary transforms from NIfTI, also with CacheDataset,
DynUNet, fp16 AMP, training only. Both bare steps run here too. The first epoch of each, which warms up, is left out.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from step_throughput import OurStep, measure, monai_step, on_patches

from trainable.core.brats import MODALITIES
from trainable.core.config import TrainConfig
from trainable.core.console import make_console
from trainable.core.device import kernel_selection
from trainable.data.phantom import write_phantoms
from trainable.data.prepare import Data, prepare_data
from trainable.training.epoch_result import EpochResult
from trainable.training.loop import fit

SIZE, BATCH = 128, 2


def ours(config: TrainConfig, data: Data) -> dict[str, float]:
    """Patches/s of training and of all, seconds of validation per case, GiB."""
    results: list[tuple[float, EpochResult]] = []
    fit(config, data, lambda result: results.append((time.monotonic(), result)))
    (began, _), *rest = results
    counted = [result.stats for _, result in rest]
    patches = config.patches_per_epoch
    return {
        "training": statistics.median(stats.patches_per_second for stats in counted),
        "all": len(rest) * patches / (rest[-1][0] - began),
        "validation": statistics.median(stats.val_time for stats in counted) / len(data.split.val),
        "wait": statistics.median(stats.data_wait_share for stats in counted),
        "GiB": max(stats.max_gpu_memory for stats in counted) / 1024,
    }


def monai(folder: Path, patches: int, epochs: int, workers: int, *, cached: bool) -> float:
    """Patches/s of the usual pipeline."""
    import monai.transforms as mt
    from monai.data import CacheDataset, DataLoader, Dataset

    keys = ["image", "label"]
    steps: list[Any] = [
        mt.LoadImaged(keys),
        mt.EnsureChannelFirstd("image"),
        mt.EnsureTyped(keys),
        mt.ConvertToMultiChannelBasedOnBratsClassesd("label"),
        mt.Orientationd(keys, axcodes="RAS"),
        mt.Spacingd(keys, pixdim=(1, 1, 1), mode=("bilinear", "nearest")),
        mt.RandSpatialCropd(keys, roi_size=[SIZE] * 3, random_size=False),
        *(mt.RandFlipd(keys, prob=0.5, spatial_axis=axis) for axis in range(3)),
        mt.NormalizeIntensityd("image", nonzero=True, channel_wise=True),
        mt.RandScaleIntensityd("image", factors=0.1, prob=1.0),
        mt.RandShiftIntensityd("image", offsets=0.1, prob=1.0),
    ]
    cases = [
        {"image": [str(case / f"{case.name}_{name}.nii.gz") for name in MODALITIES],
         "label": str(case / f"{case.name}_seg.nii.gz")}
        for case in sorted(folder.iterdir()) if case.is_dir()
    ]  # fmt: skip
    repeated = (cases * (patches // len(cases) + 1))[:patches]
    dataset: Any = Dataset(repeated, mt.Compose(steps))
    if cached:
        dataset = CacheDataset(cases, mt.Compose(steps), num_workers=workers, progress=False)
        dataset = torch.utils.data.Subset(dataset, [index % len(cases) for index in range(patches)])
    loader = DataLoader(
        dataset, batch_size=BATCH, shuffle=True, num_workers=workers, persistent_workers=True, pin_memory=True
    )
    step = monai_step(torch.float16)
    rates = []
    for _ in range(epochs):
        started, count = time.monotonic(), 0
        for batch in loader:
            step(batch["image"].cuda(non_blocking=True), batch["label"].float().cuda(non_blocking=True))
            count += len(batch["image"])
        torch.cuda.synchronize()
        rates.append(count / (time.monotonic() - started))
    return statistics.median(rates[1:])


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of BraTS2021 cases, instead of phantoms")
    parser.add_argument("--cases", type=int, default=12, help="phantoms")
    parser.add_argument("--patches", type=int, default=240, help="an epoch")
    parser.add_argument("--epochs", type=int, default=4, help="of ours")
    asked = parser.parse_args()
    print(f"{torch.cuda.get_device_name()}, {os.cpu_count()} CPU cores, torch {torch.__version__}\n{__doc__}")
    workers = max(2, min(14, (os.cpu_count() or 4) - 2))
    with tempfile.TemporaryDirectory() as scratch:
        folder = asked.data or Path(scratch) / "cases"
        if asked.data is None:
            write_phantoms(folder, cases=asked.cases, shape=(240, 240, 155))
        config = TrainConfig(
            data_dir=folder, cache_dir=Path(scratch) / "cache", output_dir=Path(scratch) / "out",
            epochs=asked.epochs, patches_per_epoch=asked.patches,
            target_shape=(SIZE, SIZE, SIZE), batch_size=BATCH, deep_supervision=True, optimizer="adamw", amp="bf16",
            gradient_clipping=1.0, num_workers=6, test_fraction=0.0, save_freq=1000,
        )  # fmt: skip
        data = prepare_data(config, quiet=True)
        with kernel_selection(config):
            bare = 1000 * BATCH / measure(lambda: OurStep(SIZE, BATCH))[0]
            peer = 1000 * BATCH / measure(lambda: on_patches(monai_step(torch.float16), SIZE, BATCH))[0]
        print(f"bare steps: voxtune {bare:.1f}, MONAI {peer:.1f} patches/s", file=sys.stderr, flush=True)
        found = ours(config, data)
        print(f"fit(): {found}", file=sys.stderr, flush=True)
        table = Table("", "patches/s", "of its bare step", box=None, header_style="bold")
        table.add_row("voxtune, bare step", f"{bare:.1f}", "")
        for name in ("training", "all"):
            table.add_row(f"voxtune, fit(), {name}", f"{found[name]:.1f}", f"{100 * found[name] / bare:.0f} %")
        table.add_row("MONAI, bare step", f"{peer:.1f}", "")
        for cached in (True, False):
            with kernel_selection(config):
                rate = monai(folder, asked.patches if cached else asked.patches // 2, 2, workers, cached=cached)
            name = f"MONAI, {'CacheDataset' if cached else 'Dataset'}, {workers} workers"
            table.add_row(name, f"{rate:.1f}", f"{100 * rate / peer:.0f} %")
        make_console().print(table)
        waited = f"{100 * found['wait']:.1f} % of the training's time waiting for data"
        print(f"fit(): {found['validation']:.3f} s of validation per case, {found['GiB']:.2f} GiB, {waited}")


if __name__ == "__main__":
    main()
