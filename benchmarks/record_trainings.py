"""Real trainings to their end, of recipes that no sweep chose and none stopped: what the benchmark `cases` is made of.

    python benchmarks/record_trainings.py OUT --data DATA [--recipes 400] [--part 0/1] [--set KEY=VALUE ...]

The default recipe, nnU-Net's, and even points without priors, two of three of search_spaces/brats.yaml and one of three
of all ranges that it has had (benchmarks/data/unet_ranges.yaml), are trained with seed 0 on the first cases of DATA and
validated on the last two. --part 1/4 does every fourth of them, for several processes at once. A line of
OUT/PART.jsonl per training: the recipe and its validation scores. No checkpoint is written.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from trainable.core.config import TrainConfig
from trainable.data.prepare import prepare_data
from trainable.training import checkpoint_manager
from trainable.training.loop import fit
from tune.search.recipe_sampler import SobolStartupSampler
from tune.spec.sweep_file import load_sweep_config

VALIDATED = 2  # cases
RANGES = Path(__file__).parent / "data" / "unet_ranges.yaml"


def recipes(count: int) -> list[dict[str, object]]:
    """Return what is trained, in order."""
    config = load_sweep_config("brats")
    spaces = config.space.without_priors(), load_sweep_config(RANGES).space
    given = [values for _, values in config.given_recipes]
    drawn = [SobolStartupSampler(spaces[number % 3 == 0], 0, number).values for number in range(len(given), count)]
    return [*given, *drawn]


def curve_of(config: TrainConfig) -> list[float]:
    """Train a recipe; return its validation scores."""
    curve: list[float] = []
    data = prepare_data(config, quiet=True)
    fit(config, data, lambda result: curve.append(result.val["dice_mean"]) if result.val else None, flush=False)
    return curve


def main() -> None:
    """Train what is not trained yet of this part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--recipes", type=int, default=400)
    parser.add_argument("--part", default="0/1")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE")
    asked = parser.parse_args()
    checkpoint_manager.save_checkpoint = lambda *args, **options: None  # 350 MiB an epoch would be most of the time
    part, parts = map(int, asked.part.split("/"))
    asked.out.mkdir(parents=True, exist_ok=True)
    names = sorted(folder.name for folder in asked.data.iterdir() if folder.is_dir())
    split = asked.out / f"split_{part}.json"
    split.write_text(json.dumps({"train": names[:-VALIDATED], "val": names[-VALIDATED:], "test": []}))
    own = [f"train.data_dir={asked.data}", f"train.split_file={split}", "train.patience=0", "early_stopping.type=none"]
    config = load_sweep_config("brats", [*own, *asked.set])
    file = asked.out / f"{part}.jsonl"
    done = {json.loads(line)["recipe"] for line in file.open()} if file.exists() else set()
    for number, values in list(enumerate(recipes(asked.recipes)))[part::parts]:
        if number not in done:
            options = {**values, "seed": 0, "output_dir": asked.out / f"training_{part}_{number}"}
            curve = curve_of(config.train_config(options))
            with file.open("a") as lines:
                lines.write(json.dumps({"recipe": number, "values": values, "curve": curve}) + "\n")


if __name__ == "__main__":
    main()
