"""`voxtune demo`: everything once, on synthetic cases and a laptop's CPU."""

from __future__ import annotations

import json
import time
from itertools import chain, count
from pathlib import Path

import torch

from trainable.core.console import duration, make_console
from trainable.core.errors import InputError
from trainable.core.logger import logger
from trainable.data.phantom import write_phantoms
from trainable.evaluate import score_table
from trainable.evaluation.metrics import Scores, mean_scores
from trainable.evaluation.validate import validate
from trainable.model.unet3d import build_network
from trainable.predict import predict_cases
from trainable.training.training_dir import TrainingDir
from tune.confirm import confirm
from tune.driver.cluster import Cluster
from tune.driver.sweep import launch
from tune.retrain import retrain
from tune.run.export import export_recipe
from tune.run.results import Run, read_run
from tune.spec.sweep_file import load_sweep_config
from tune.terminal.tables import print_best, print_outcome

CASES, SHAPE = 20, (64, 64, 48)
SEEDS = 3  # trainings of the winner and of the default that confirm it


def run_demo(out: Path | None, trials: int | None = None, epochs: int = 40) -> None:
    """Write synthetic cases, run a sweep, confirm its winner, retrain and predict the test cases, all in a new folder.

    Args:
        out: the folder; None for the first of voxtune_demo, voxtune_demo_2, _3, ... that does not exist.
        trials: number of trials of the sweep; None for that in demo.yaml.
        epochs: number of epochs of the retraining.

    Raises:
        InputError: before anything is written, if `out` exists, or for no trials.
        SystemExit: with code 1 if no trial has a score; else as `launch`.
    """
    out = out or free_folder(Path("voxtune_demo"))
    if out.exists():
        raise InputError(f"{out} exists; take another --out, or remove it")
    overrides = [f"train.data_dir={json.dumps(str(out / 'data'))}"] + [f"study.trials={trials}"] * (trials is not None)
    config = load_sweep_config("demo", overrides)
    console, started = make_console(), time.monotonic()

    def chapter(number: int, text: str) -> None:
        console.print(f"\n[bold]{number}. {text}[/]  ({duration(time.monotonic() - started)})")

    chapter(1, f"{CASES} synthetic cases of {' x '.join(map(str, SHAPE))} voxels")
    write_phantoms(out / "data", cases=CASES, shape=SHAPE, seed=0)
    chapter(2, "a sweep on Ray: demo.yaml")
    with Cluster() as cluster:
        run = launch(config, out / "run", cluster=cluster)
        print_outcome(run)
        if not run.ranking:
            raise SystemExit(1)
        chapter(3, "the best trials")
        print_best(run, top=5)
        chapter(4, f"is the winner real? {SEEDS} more trainings of it and of the default, with other seeds")
        confirm(run.folder, top=1, seeds=SEEDS, cluster=cluster)
    run = read_run(run.folder)
    export_recipe(run, run.best(), out / "best.yaml")
    chapter(5, f"the chosen recipe, retrained for {epochs} epochs")
    model = TrainingDir(retrain(run.folder, epochs=epochs)).best
    chapter(6, "held-out cases, predicted from their folders")
    scores = predict_held_out(run, model, out)
    logger.info(f"an untrained network on the same cases: mean Dice {untrained(run, list(scores)):.4f}")
    logger.info(f"\ndone in {duration(time.monotonic() - started)}; predictions and pictures: {out}/predictions")


def free_folder(wanted: Path) -> Path:
    """Return the absolute path of `wanted`, or if that exists of the first of wanted_2, wanted_3, ... that does not."""
    numbered = (wanted.with_name(f"{wanted.name}_{number}") for number in count(2))
    return next(folder for folder in chain([wanted], numbered) if not folder.exists()).resolve()


def predict_held_out(run: Run, model: Path, out: Path) -> dict[str, Scores]:
    """Predict the test cases into OUT/predictions, with pictures; print and return their scores by case name."""
    cases = [out / "data" / name for name in run.split().test]
    predictions = predict_cases(model, cases, out / "predictions", pictures=True)
    logger.info(score_table(predictions.scores, predictions.parts))
    return predictions.scores


def untrained(run: Run, names: list[str]) -> float:
    """Return the mean Dice of the winner's initial weights, drawn from its seed, over cases of the cache.

    names: those of the cases.
    """
    recipe = run.recipe(run.best())
    torch.manual_seed(recipe.seed)
    cache = Path(str(run.config.record.cache_dir))
    return mean_scores(validate(build_network(recipe), recipe, cache, names).values())["dice_mean"]
