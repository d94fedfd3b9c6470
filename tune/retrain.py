"""Retrains the winner of a sweep, longer or on more cases, and scores it on the held-out cases once, at the end."""

from __future__ import annotations

from pathlib import Path

import torch

from trainable import checkpoint, cli
from trainable.cases import Split, load_split, save_split
from trainable.config import InputError, load_options, make_config, plain
from tune.results import read_run


def retrain(
    folder: Path,
    *,
    number: int | None = None,
    config_file: Path | None = None,
    epochs: int | None = None,
    with_val: bool = False,
    name: str | None = None,
) -> Path:
    """Train a trial's recipe anew in RUN/retrain/<name>; returns that folder.

    with_val: train on the validation cases too; the last epoch is then the model, as nothing is left to select by.
    An unfinished retraining of that name goes on where it stopped.
    """
    run = read_run(folder)
    trial = run.best() if number is None else run.trial(number)
    recipe = run.recipe(trial) if config_file is None else make_config(load_options(config_file), str(config_file))
    what = f"trial_{trial.number:04d}" if config_file is None else config_file.stem
    epochs = epochs or recipe.epochs
    output = folder / "retrain" / (name or f"{what}_{epochs}_epochs{'_with_val' if with_val else ''}")
    output.mkdir(parents=True, exist_ok=True)
    split = load_split(folder / "split.json")
    if with_val:
        split = Split(tuple(sorted(split.train + split.val)), (), split.test)
    save_split(split, output / "split.json")
    assert run.study.record is not None
    places = {
        "output_dir": output.resolve(),
        "data_dir": make_config(run.study.train).data_dir,
        "cache_dir": run.study.record["cache_dir"],
        "split_file": (output / "split.json").resolve(),
        "resume": unfinished(output, epochs),
    }
    config = make_config({**plain(recipe), **places, "epochs": epochs, "patience": 0}, str(output))
    torch.set_num_threads(run.study.resources.cpu)  # as its trials had, so that an epoch repeats theirs bit for bit
    cli.train(config)
    if split.test:
        best = config.output_dir / "checkpoints" / checkpoint.BEST
        cli.test(config.model_copy(update={"resume": best}))
    return output


def unfinished(output: Path, epochs: int) -> Path | None:
    """The checkpoint of a retraining that was interrupted."""
    latest = output / "checkpoints" / checkpoint.LATEST
    if not latest.exists():
        return None
    done = int(checkpoint.load_checkpoint(latest)["epoch"])
    if done >= epochs:
        raise InputError(f"{output} is done, {done} epochs; use it, or take another --name")
    print(f"goes on after epoch {done} of {output}")
    return latest
