"""Recipes trained with several seeds on the same cases: mean and range of the best validation Dice of each.

    python benchmarks/recipe_ablation.py --data DIR --train A B C --val D E [--seeds 0 1 2] [--recipes default ema0.99]
        [--tree DIR] [--set epochs=60 patches_per_epoch=40 target_shape=[96,96,96]]

Trains in this process, without Ray. --tree is a checkout of another commit whose code is used in place of this one's.
The cases are prepared in DIR.cache or in --cache. --set are options for all recipes, as JSON. "best" is the Dice of the
best epoch, "last" the mean of the last three validated epochs, which depends less on chance.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
RECIPES: dict[str, dict[str, Any]] = {
    "default": {},
    "voxtune": {"optimizer": "adam", "lr": 3e-4, "scheduler": "plateau"},  # what train.py does without options
    "nnunet": yaml.safe_load((ROOT / "search_spaces/recipes/nnunet.yaml").read_text()),
    "ema0.99": {"ema_decay": 0.99},
    "ema0.999": {"ema_decay": 0.999},
    "no augment": {"augment": False},
    "strength 2": {"augment_strength": 2.0},
    "nnunet intensity": {"lowres_prob": 0.25, "contrast_prob": 0.15, "brightness_prob": 0.15},
    "overhang 0.25": {"patch_overhang": 0.25},
}
BASE: dict[str, Any] = {
    "epochs": 60, "patches_per_epoch": 40, "val_freq": 5, "val_cases": 0, "target_shape": [96, 96, 96],
    "scheduler": "cosine", "lr": 1e-3, "optimizer": "adamw", "deep_supervision": True,
}  # fmt: skip


def parse_arguments() -> argparse.Namespace:
    """Return the arguments of this call."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--train", nargs="+", required=True, metavar="CASE")
    parser.add_argument("--val", nargs="+", required=True, metavar="CASE")
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=["default", "ema0.99", "ema0.999"])
    parser.add_argument("--tree", type=Path, default=ROOT)
    parser.add_argument("--set", nargs="+", default=[], metavar="OPTION=JSON")
    return parser.parse_args()


def given_options(words: list[str]) -> dict[str, Any]:
    """Return the options of OPTION=JSON; a value that is no JSON is text."""
    options: dict[str, Any] = {}
    for word in words:
        name, _, value = word.partition("=")
        try:
            options[name] = json.loads(value)
        except ValueError:
            options[name] = value
    return options


def score(options: dict[str, Any], folder: Path) -> tuple[float, float]:
    """Train once; return the best val_dice_mean, and the mean of those of the last three validated epochs."""
    from trainable.core.options import make_config
    from trainable.data.prepare import prepare_data
    from trainable.training.epoch_result import EpochResult
    from trainable.training.loop import fit

    config = make_config({**options, "output_dir": folder})
    scores: list[float] = []

    def note(result: EpochResult) -> None:
        if result.val:
            scores.append(result.val["dice_mean"])

    best = fit(config, prepare_data(config, quiet=True), note, flush=False, one_file=True).best_score
    return best, statistics.mean(scores[-3:])


def main() -> None:
    """Print a line per training and a table of the recipes."""
    arguments = parse_arguments()
    sys.path.insert(0, str(arguments.tree.resolve()))
    with tempfile.TemporaryDirectory() as folder:
        split = Path(folder) / "split.json"
        split.write_text(json.dumps({"train": arguments.train, "val": arguments.val, "test": []}))
        shared = {**BASE, **given_options(arguments.set), "data_dir": arguments.data, "split_file": split}
        shared |= {"cache_dir": arguments.cache} if arguments.cache else {}
        results: dict[str, list[tuple[float, float]]] = {}
        for recipe in arguments.recipes:
            for seed in arguments.seeds:
                started, output = time.monotonic(), Path(folder) / f"{recipe}-{seed}".replace(" ", "_")
                pair = score({**shared, **RECIPES[recipe], "seed": seed}, output)
                results.setdefault(recipe, []).append(pair)
                seconds = time.monotonic() - started
                print(f"{recipe}, seed {seed}: best {pair[0]:.4f}, last {pair[1]:.4f}, {seconds:.0f} s", flush=True)
    print(f"\n{arguments.tree.resolve()}, seeds {arguments.seeds}: mean (lowest to highest) of val_dice_mean")
    for recipe, pairs in results.items():
        texts = [
            f"{name} {statistics.mean(values):.4f} ({min(values):.4f} to {max(values):.4f})"
            for name, values in zip(("best", "last"), zip(*pairs, strict=True), strict=True)
        ]
        print(f"{recipe:18}{texts[0]}   {texts[1]}")


if __name__ == "__main__":
    main()
