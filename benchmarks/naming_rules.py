"""Which way to name the winner of a sweep names the best model? Real trainings, judged on cases that nothing has seen.

    python benchmarks/naming_rules.py train OUT --data DATA --split SPLIT.json [--space quick] [--set KEY=VALUE ...]
        [--recipes 24] [--seeds 0 1 2] [--part 0/1]
    python benchmarks/naming_rules.py table OUT ... [--trials 6]

train: the default recipe, the start recipes and points of the start-up are trained to their end with each seed, and the
checkpoint of the best epoch, which a user gets, is scored on the test cases of SPLIT.json. --part 1/4 does every fourth
of the trainings, for several processes at once. A line of OUT/PART.jsonl per training.

table: of each seed some of the recipes at random, --trials of them, are taken for the finished trials of a sweep, 2,000
times; a rule names one by its curve of validation scores. "test" is the test score of that very model, "again" the mean
of those of the same recipe with the other seeds; the table has the means of both below the best of the drawn recipes by
"again", in Dice points.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from trainable.core.config import TrainConfig
from trainable.data.prepare import prepare_data
from trainable.evaluate import evaluate
from trainable.training.epoch_result import EpochResult
from trainable.training.loop import fit
from trainable.training.training_dir import BEST
from tune.search.recipe_sampler import SobolStartupSampler
from tune.spec.sweep_config import SweepConfig
from tune.spec.sweep_file import load_sweep_config

DRAWS = 2000
Curve = list[float]


def window(curve: Curve, share: int) -> int:
    """Return how many validations are 1 of `share` of a curve."""
    return max(1, round(len(curve) / share))


def peak(curve: Curve, share: int) -> float:
    """Return the highest mean of as many validations in a row as are 1 of `share` of them."""
    count = window(curve, share)
    return float(np.convolve(curve, np.ones(count) / count, "valid").max())


RULES: dict[str, Callable[[Curve], float]] = {
    "best": max,
    "last": lambda curve: curve[-1],
    "mean of the last quarter": lambda curve: statistics.fmean(curve[-window(curve, 4) :]),
    "best eighth in a row": lambda curve: peak(curve, 8),
    "best quarter in a row": lambda curve: peak(curve, 4),
    "best half in a row": lambda curve: peak(curve, 2),
}


def recipes(config: SweepConfig, count: int) -> list[dict[str, object]]:
    """Return the recipes that the sweep is given, then points of its start-up."""
    given = [values for _, values in config.given_recipes]
    drawn = [SobolStartupSampler(config.space, config.seed, number).values for number in range(len(given), count)]
    return [*given, *drawn]


def train_and_test(config: TrainConfig) -> dict[str, object]:
    """Train a recipe; return its curve, and the test score of the checkpoint of its best epoch."""
    curve: Curve = []

    def note(result: EpochResult) -> None:
        if result.val:
            curve.append(result.val["dice_mean"])

    data = prepare_data(config, quiet=True)
    result = fit(config, data, note, flush=False)
    tested = evaluate(config.model_copy(update={"resume": result.checkpoints / BEST}), data)
    return {"curve": curve, "test": tested["dice_mean"], "epoch": result.best_epoch}


def train(asked: argparse.Namespace) -> None:
    """Train what is not trained yet of this part, and append a line for each."""
    part, parts = map(int, asked.part.split("/"))
    own = [f"train.data_dir={asked.data}", f"train.split_file={asked.split}", "train.patience=0"]
    config = load_sweep_config(asked.space, [*own, *asked.set])
    file = asked.out / f"{part}.jsonl"
    asked.out.mkdir(parents=True, exist_ok=True)
    done = {(row["recipe"], row["seed"]) for row in read_rows([asked.out])}
    tasks = [(recipe, seed) for seed in asked.seeds for recipe in range(asked.recipes)][part::parts]
    values = recipes(config, asked.recipes)
    for recipe, seed in tasks:
        if (recipe, seed) in done:
            continue
        output = asked.out / f"training_{part}"
        shutil.rmtree(output, ignore_errors=True)
        found = train_and_test(config.train_config(values[recipe], seed=seed, output_dir=output))
        with file.open("a") as lines:
            lines.write(json.dumps({"recipe": recipe, "seed": seed, "values": values[recipe], **found}) + "\n")


def read_rows(folders: Sequence[Path]) -> list[dict[str, object]]:
    """Return what has been trained."""
    return [json.loads(line) for folder in folders for path in sorted(folder.glob("*.jsonl")) for line in path.open()]


def losses(rows: Sequence[dict[str, object]], trials: int) -> dict[str, tuple[float, float]]:
    """Return what each rule loses, as the means of "test" and "again", in Dice points."""
    curves: dict[int, dict[int, Curve]] = defaultdict(dict)
    tests: dict[int, dict[int, float]] = defaultdict(dict)
    for row in rows:
        curves[row["recipe"]][row["seed"]], tests[row["recipe"]][row["seed"]] = row["curve"], row["test"]
    seeds = sorted({row["seed"] for row in rows})
    whole = [recipe for recipe in curves if set(curves[recipe]) == set(seeds)]
    rng = np.random.default_rng(0)
    lost: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for draw in range(DRAWS):
        seed, drawn = seeds[draw % len(seeds)], rng.choice(whole, trials, replace=False).tolist()
        again = {recipe: statistics.fmean(tests[recipe][s] for s in seeds if s != seed) for recipe in drawn}
        best = max(again.values())
        for rule, score in RULES.items():
            named = max(drawn, key=lambda recipe: score(curves[recipe][seed]))
            lost[rule].append((best - tests[named][seed], best - again[named]))
    return {rule: tuple(100 * np.mean(pairs, axis=0)) for rule, pairs in lost.items()}


def main() -> None:
    """Train, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True, dest="verb")
    training, table = verbs.add_parser("train"), verbs.add_parser("table")
    training.add_argument("out", type=Path)
    training.add_argument("--data", type=Path, required=True)
    training.add_argument("--split", type=Path, required=True)
    training.add_argument("--space", default="quick")
    training.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE")
    training.add_argument("--recipes", type=int, default=24)
    training.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    training.add_argument("--part", default="0/1")
    table.add_argument("out", type=Path, nargs="+")
    table.add_argument("--trials", type=int, default=6)
    asked = parser.parse_args()
    if asked.verb == "train":
        train(asked)
        return
    print("| the winner is named by | test, points below the best | again |\n| --- | --- | --- |")
    for rule, (test, again) in losses(read_rows(asked.out), asked.trials).items():
        print(f"| {rule} | {test:.2f} | {again:.2f} |")


if __name__ == "__main__":
    main()
