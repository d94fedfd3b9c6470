"""`voxtune demo`: everything once, on synthetic cases and a laptop's CPU."""

from __future__ import annotations

import json
import time
from itertools import chain, count
from pathlib import Path

import torch

from trainable.core.errors import InputError
from trainable.data.phantom import write_phantoms
from trainable.evaluate import score_table
from trainable.evaluation.metrics import mean_scores
from trainable.evaluation.validate import validate
from trainable.model.unet3d import build_network
from trainable.predict import predict_cases
from tune.cli import best, print_outcome
from tune.driver.sweep import launch
from tune.retrain import retrain
from tune.run.report import duration, make_console
from tune.run.results import Run, read_run
from tune.spec.sweep_file import load_sweep_config

CASES, SHAPE = 20, (64, 64, 48)


def run_demo(out: Path | None, trials: int | None = None, epochs: int = 40) -> None:
    """Phantoms, a sweep, the best trial, its retraining, predictions of held-out cases; all in `out`, a new folder."""
    out = out or free_folder(Path("voxtune_demo"))
    if out.exists():
        raise InputError(f"{out} exists; take another --out, or remove it")
    console, started = make_console(), time.monotonic()

    def chapter(number: int, text: str) -> None:
        console.print(f"\n[bold]{number}. {text}[/]  ({duration(time.monotonic() - started)})")

    chapter(1, f"{CASES} synthetic cases of {' x '.join(map(str, SHAPE))} voxels")
    write_phantoms(out / "data", cases=CASES, shape=SHAPE, seed=0)
    chapter(2, "a sweep on Ray: demo.yaml")
    overrides = [f"train.data_dir={json.dumps(str(out / 'data'))}"] + [f"study.trials={trials}"] * (trials is not None)
    run = launch(load_sweep_config("demo", overrides), out / "run")
    print_outcome(run)
    chapter(3, "the best trials")
    best(run.folder, top=5, export=out / "best.yaml")
    chapter(4, f"the winner, retrained for {epochs} epochs")
    folder = retrain(run.folder, epochs=epochs)
    chapter(5, "held-out cases, predicted from their folders")
    scores = predict_held_out(read_run(run.folder), folder, out)
    console.print(f"an untrained network on the same cases: mean Dice {untrained(run, list(scores)):.4f}")
    console.print(f"\ndone in {duration(time.monotonic() - started)}; predictions and pictures: {out}/predictions")


def free_folder(wanted: Path) -> Path:
    """`wanted`, or the first of wanted_2, wanted_3, ... that does not exist yet; absolute."""
    numbered = (wanted.with_name(f"{wanted.name}_{number}") for number in count(2))
    return next(folder for folder in chain([wanted], numbered) if not folder.exists()).resolve()


def predict_held_out(run: Run, model: Path, out: Path) -> dict[str, dict[str, float]]:
    """Predict the test cases as `voxtune predict` does."""
    cases = [out / "data" / name for name in run.split().test]
    scores = predict_cases(model / "checkpoints" / "best_model.pth", cases, out / "predictions", pictures=True)
    print(score_table(scores))
    return scores


def untrained(run: Run, names: list[str]) -> float:
    """Mean Dice of the winner's network before its first step."""
    recipe = run.recipe(run.best())
    torch.manual_seed(recipe.seed)
    cache = Path(run.config.record["cache_dir"])
    return mean_scores(validate(build_network(recipe), recipe, cache, names).values())["dice_mean"]
