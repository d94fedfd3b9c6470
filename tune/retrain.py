"""Retrains the winner of a sweep, longer or on more cases, and scores it on the held-out cases once, at the end."""

from __future__ import annotations

from pathlib import Path

import torch

from trainable import cli
from trainable.core.config import TrainConfig
from trainable.core.errors import InputError
from trainable.core.options import fields_of_role, load_options, make_config, to_dict
from trainable.data.prepare import prepare_data
from trainable.data.split import Split, load_split, save_split
from trainable.evaluate import evaluate
from trainable.training import checkpoint
from tune.run.provenance import digest_of
from tune.run.results import read_run


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

    epochs: another horizon than the sweep's; what the schedule counts in epochs is stretched to it.
    with_val: train on the validation cases too; the last epoch is then the model, as nothing is left to select by.
    An unfinished retraining of that name goes on where it stopped.
    """
    run = read_run(folder)
    trial = run.best() if number is None else run.trial(number)
    if number is None and config_file is None and not trial.finished:
        raise InputError(f"{folder}: no trial has ended by itself yet; wait, or name one with --trial")
    recipe = run.recipe(trial) if config_file is None else make_config(load_options(config_file), str(config_file))
    what = f"trial_{trial.number:04d}" if config_file is None else config_file.stem
    epochs = epochs or recipe.epochs
    if name is not None and Path(name).name != name:
        raise InputError(f"--name {name}: expected the name of a folder in {folder}/retrain")
    output = folder / "retrain" / (name or f"{what}_{epochs}_epochs{'_with_val' if with_val else ''}")
    split = run.split()
    if with_val:
        split = Split(tuple(sorted(split.train + split.val)), (), split.test)
    refuse_other_split(output, split)
    output.mkdir(parents=True, exist_ok=True)
    save_split(split, output / "split.json")
    latest = output / "checkpoints" / checkpoint.LATEST
    done = int(checkpoint.load_latest_valid(latest)[1]["epoch"]) if latest.exists() else 0
    places = {
        "output_dir": output.resolve(),
        "data_dir": run.config.fixed("data_dir"),
        "cache_dir": run.config.record["cache_dir"],
        "split_file": (output / "split.json").resolve(),
        "resume": latest if done else None,
    }
    config = make_config({**to_dict(scale_to_epochs(recipe, epochs)), **places, "patience": 0}, str(output))
    torch.set_num_threads(run.config.resources.cpu)  # as its trials had, so that an epoch repeats theirs bit for bit
    if with_val and config.scheduler == "plateau":
        print(f"nothing is validated, so scheduler plateau has nothing to watch: lr stays at {config.lr:g}")
    if done:
        refuse_other_recipe(output, config)
    data = prepare_data(config)
    if digest_of(data) != run.config.record["data"]:
        raise InputError(f"{config.data_dir}: the cases are not those that {folder} began with; restore them")
    if done < epochs:
        print(f"goes on after epoch {done} of {output}\n" if done else "", end="")
        cli.train(config, data)
    elif (output / "test_scores.json").exists():
        raise InputError(f"{output} is done, {epochs} epochs; use it, or take another --name")
    if split.test:
        best = config.output_dir / "checkpoints" / checkpoint.BEST
        evaluate(config.model_copy(update={"resume": best}), data)
    return output


def refuse_other_split(output: Path, split: Split) -> None:
    """Raise InputError where a retraining was begun on another split."""
    path = output / "split.json"
    if path.exists() and (begun := load_split(path)) != split:
        raise InputError(
            f"{output} was begun {'without' if begun.val else 'with'} the validation cases among those to train on; "
            "with another split its model could not be scored: take another --name"
        )


def refuse_other_recipe(output: Path, config: TrainConfig) -> None:
    """Raise InputError where a retraining was begun with another recipe or horizon."""
    begun, now = load_options(output / "training_config.json"), to_dict(config)
    for name in ["epochs", *fields_of_role("recipe")]:
        if begun[name] != now[name]:
            raise InputError(
                f"{output} was begun with {name} {begun[name]}, and it would be {now[name]} now: take another --name"
            )


def scale_to_epochs(recipe: TrainConfig, epochs: int) -> TrainConfig:
    """The recipe over another number of epochs, its lr schedule of the same shape over that horizon."""
    factor = epochs / recipe.epochs
    return recipe.model_copy(
        update={
            "epochs": epochs,
            "warmup_epochs": round(recipe.warmup_epochs * factor),
            "plateau_patience": round(recipe.plateau_patience * factor),
            "step_size": max(1, round(recipe.step_size * factor)),
            "exponential_gamma": recipe.exponential_gamma ** (1 / factor),
        }
    )
