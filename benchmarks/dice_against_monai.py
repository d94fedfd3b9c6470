"""Our network and MONAI's DynUNet in the same training: the same loss, patches, augmentation, steps, seeds, optimizer.

    python benchmarks/dice_against_monai.py DATA [--seeds 3] [--epochs 20] [--patches 48] [--train 3]

The first cases by name train, the others are validated after the last epoch. A gap beyond twice the spread over seeds
would be a bug to find. Prints each run and the means.
"""

import argparse
import math
import statistics
import tempfile
from pathlib import Path
from unittest.mock import patch

import torch
import yaml
from monai.networks.nets import DynUNet
from rich.table import Table
from torch import Tensor, nn

from trainable.cases.case_search import find_cases
from trainable.core.brats import REGIONS
from trainable.core.config import TrainConfig
from trainable.core.console import make_console
from trainable.core.options import make_config
from trainable.data.cache import cache_folder
from trainable.data.prepare import Data, prepare_data
from trainable.data.split import Split
from trainable.model.unet3d import build_network
from trainable.training.epoch_result import EpochResult
from trainable.training.loop import fit

SCORES = (*REGIONS, "mean")


class PeerNetwork(nn.Module):
    """DynUNet of the same resolutions and channels, answering as UNet3D does: a list of one tensor of logits."""

    def __init__(self, config: TrainConfig) -> None:
        super().__init__()
        channels = [min(config.base_channels * 2**level, config.max_channels) for level in range(config.depth)]
        strides = [1] + [2] * (config.depth - 1)
        norm = ("INSTANCE", {"affine": True})
        kernels = [3] * config.depth
        self.network = DynUNet(3, 4, 3, kernels, strides, strides[1:], filters=channels, norm_name=norm)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [self.network(x)]


def train(config: TrainConfig, data: Data, peer: bool) -> EpochResult:
    """Train one network and return its last epoch."""
    build = PeerNetwork if peer else build_network
    with patch("trainable.training.state.build_network", build):
        return fit(config, data)


def main() -> None:
    """Train both with each seed and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    for name, value in {"seeds": 3, "epochs": 20, "patches": 48, "train": 3}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--options", nargs="*", default=[], help="name=value, more options of train.py")
    arguments = parser.parse_args()
    names = [case.name for case in find_cases(arguments.data, need_seg=True)[0]]
    split = Split(tuple(names[: arguments.train]), tuple(names[arguments.train :]), ())
    table = Table("network", "seed", *SCORES, "loss", "patches/s", "GiB", box=None)
    found: dict[str, list[dict[str, float]]] = {"voxtune": [], "DynUNet": []}
    with tempfile.TemporaryDirectory() as folder:
        common = {
            "data_dir": arguments.data,
            "cache_dir": cache_folder(arguments.data, None),
            "save_freq": arguments.epochs,
        }
        common |= {"epochs": arguments.epochs, "val_freq": arguments.epochs, "patches_per_epoch": arguments.patches}
        common |= {"amp": "bf16", "scheduler": "cosine", "num_workers": 6}
        common |= {
            name: yaml.safe_load(value) for name, value in (option.split("=", 1) for option in arguments.options)
        }
        data = Data(prepare_data(make_config(common), quiet=True).folder, split)
        for seed in range(arguments.seeds):
            for name, results in found.items():
                config = make_config({**common, "seed": seed, "output_dir": Path(folder) / f"{name}_{seed}"})
                last = train(config, data, peer=name == "DynUNet")
                assert last.val is not None
                results.append(last.val)
                shown = [f"{last.val[f'dice_{score}']:.4f}" for score in SCORES]
                cost = [f"{last.stats.patches_per_second:.1f}", f"{last.stats.max_gpu_memory / 1024:.2f}"]
                table.add_row(name, str(seed), *shown, f"{last.stats.avg_total_loss:.4f}", *cost)
                print(name, seed, *shown, flush=True)
    console = make_console()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    console.print(
        f"\n{device}, torch {torch.__version__}; {len(split.train)} cases trained, {len(split.val)} validated"
    )
    console.print(table)
    means = {name: [val["dice_mean"] for val in results] for name, results in found.items()}
    spreads = {name: statistics.stdev(values) if len(values) > 1 else math.nan for name, values in means.items()}
    for name, values in means.items():
        console.print(f"{name}: mean Dice {statistics.mean(values):.4f}, deviation over seeds {spreads[name]:.4f}")
    gap, limit = statistics.mean(means["voxtune"]) - statistics.mean(means["DynUNet"]), 2 * max(spreads.values())
    verdict = "within" if abs(gap) <= limit else "beyond"
    console.print(f"gap {gap:+.4f}, ours minus MONAI's: {verdict} twice the larger deviation, {limit:.4f}")


if __name__ == "__main__":
    main()
