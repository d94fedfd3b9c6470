"""GPU memory and speed of the guide's three memory profiles, at each precision, as train.py runs them.

    python benchmarks/gpu_memory.py [--steps 4]

Trains a few steps and validates one case of 240 x 240 x 155 voxels (a phantom). Peaks are what torch allocated; its
allocator's slack (in `reserved`) and the CUDA context come on top.
"""

import argparse
import gc
import tempfile
from pathlib import Path

import torch

from trainable.core.device import kernel_selection
from trainable.core.options import make_config
from trainable.data.patches import PatchLoader
from trainable.data.phantom import write_phantoms
from trainable.data.prepare import prepare_data
from trainable.evaluation.validate import validate
from trainable.training.state import TrainingState
from trainable.training.train_epoch import train_one_epoch

PROFILES = {
    "below 8 GB": {"batch_size": 1, "accumulation_steps": 4, "target_shape": (96, 96, 96)},
    "8 to 16 GB": {"batch_size": 2, "accumulation_steps": 2, "target_shape": (128, 128, 128)},
    "above 16 GB": {"batch_size": 4, "accumulation_steps": 1, "target_shape": (160, 160, 160)},
}
VARIANTS = {
    "float32": {},
    "fp16": {"amp": "fp16"},
    "bf16": {"amp": "bf16"},
    "bf16, gradient checkpointing": {"amp": "bf16", "gradient_checkpointing": True},
}


def measure(options: dict[str, object], folder: Path, steps: int) -> list[str]:
    """Peak GiB of training, of validation, reserved in both, and patches/s."""
    common = {
        "data_dir": folder / "data",
        "cache_dir": folder / "cache",
        "output_dir": folder / "out",
        "device": "cuda",
    }
    config = make_config({**common, **options, "val_fraction": 0.34, "test_fraction": 0, "num_workers": 0})
    size = config.batch_size * config.accumulation_steps
    warm, config = (config.model_copy(update={"patches_per_epoch": count * size}) for count in (1, steps))
    data = prepare_data(config, quiet=True)
    with kernel_selection(config):
        training = TrainingState(config)
        for each in (warm, config):  # kernels are chosen and loaded in the first
            stats = train_one_epoch(training, PatchLoader(data.folder, data.split.train, each, pin_memory=True))
        torch.cuda.reset_peak_memory_stats()
        validate(training.network, config, data.folder, data.split.val[:1])
    peaks = [stats.max_gpu_memory / 1024, torch.cuda.max_memory_allocated() / 2**30]
    return [f"{peak:.2f}" for peak in [*peaks, torch.cuda.max_memory_reserved() / 2**30]] + [
        f"{stats.patches_per_second:.1f}"
    ]


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4)
    arguments = parser.parse_args()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {arguments.steps} steps each")
    row = "{:14}{:32}{:>10}{:>14}{:>14}{:>12}".format
    print(row("profile", "precision", "train GiB", "validate GiB", "reserved GiB", "patches/s"))
    with tempfile.TemporaryDirectory() as folder:
        write_phantoms(Path(folder) / "data", cases=3, shape=(240, 240, 155))
        for profile, options in PROFILES.items():
            for name, more in VARIANTS.items():
                gc.collect()  # an exception and its traceback are a cycle of references
                torch.cuda.empty_cache()
                try:
                    measured = measure({**options, **more}, Path(folder), arguments.steps)
                except torch.OutOfMemoryError:
                    measured = ["out of memory", "", "", ""]
                print(row(profile, name, *measured), flush=True)


if __name__ == "__main__":
    main()
