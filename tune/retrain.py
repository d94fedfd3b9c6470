"""Retrains the winner of a sweep, longer or on more cases, and scores it on the held-out cases once, at the end."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from trainable.core.config import TrainConfig
from trainable.core.division import fitting_processes, undivided_patches
from trainable.core.epoch_scale import scale_to_epochs
from trainable.core.errors import InputError
from trainable.core.logger import logger
from trainable.core.option_files import load_options
from trainable.core.options import make_config, option_names, to_dict
from trainable.data.cache import changed_cases, scan_of
from trainable.data.patients import find_patients
from trainable.data.prepare import Data, prepare_data
from trainable.data.split import Split, fold_splits, load_split, save_split
from trainable.evaluate import as_chosen, evaluate
from trainable.train import last_row, refuse_sweep, train
from trainable.train_processes import group_here, train_in_processes
from trainable.training import checkpoint
from trainable.training.ensemble import is_ensemble
from trainable.training.epoch_result import EndReason
from trainable.training.scored_models import has_scores_of
from trainable.training.training_dir import TrainingDir
from tune.confirmation.status import confirmed_choice
from tune.followed_plateau import began_with_plateau, without_plateau
from tune.run.provenance import digest_of, load_contents
from tune.run.results import Run, TrialResult, read_run

MAX_NAME_BYTES = 200  # of a folder's name: most file systems allow 255


def retrain(
    run_dir: Path,
    *,
    number: int | None = None,
    config_file: Path | None = None,
    epochs: int | None = None,
    with_val: bool = False,
    name: str | None = None,
    gpus: int = 1,
    nodes: int = 1,
    address: str | None = None,
) -> Path:
    """Train a recipe from the start in RUN/retrain/<name>, and score it on the test cases if the split has any.

    Called again, this continues an interrupted retraining, or scores one that is trained but not scored yet.

    Args:
        run_dir: RUN.
        number: trial whose recipe is trained; None for what a confirmation chose, without one for the winner, which
            must have ended by itself.
        config_file: a recipe as YAML or JSON, trained instead of a trial's.
        epochs: number of epochs, to which the lr schedule is scaled; None for the recipe's own number.
        with_val: train on the validation cases too; the last epoch is then the model, as nothing is left to select by.
        name: of the folder; None for one made of the trial or config_file, epochs and with_val.
        gpus: number of GPUs of this machine that train together, with the recipe's step divided among them; processes
            if the recipe's device is the CPU. The test cases are scored on one.
        nodes: number of nodes of the Ray cluster at `address`, each with so many GPUs, that train together; 1 for this
            machine alone, without Ray.

    Returns:
        The folder, RUN/retrain/<name>.

    Raises:
        InputError: for a name that is no folder's, if no recipe can be chosen (see choose_recipe), if the cases have
            changed, if the file of labels or weights that the sweep had is gone, or if the folder is a sweep's or has a
            retraining that is scored already, or one with another recipe, number of epochs or split.
        SystemExit: with 1 if the training diverges; the test cases are then not scored.
    """
    if (nodes > 1) != (address is not None):
        raise InputError("--nodes N and --address HOST:PORT of a Ray cluster with N nodes go together")
    run = read_run(run_dir)
    torch.set_num_threads(run.config.resources.cpu)  # as its trials had, so that an epoch repeats theirs bit for bit
    output, recipe = choose_training(run, number, config_file, epochs, name, with_val=with_val)
    done = int(checkpoint.load_latest_valid(output.latest)[1]["epoch"]) if output.latest.exists() else 0
    if done < recipe.epochs:
        with place_to_train(run, recipe, gpus, nodes, address) as train_on:
            config, data = begin(run, recipe, output, done, with_val=with_val)
            if done:
                logger.info(f"goes on after epoch {done} of {output.path}")
            train_on(config, data, tests_follow=bool(data.split.test))
    else:
        config, data = begin(run, recipe, output, done, with_val=with_val)
        if has_scores_of(output.test_scores.with_suffix(".json"), [output.best]):
            raise InputError(f"{output.path} is done, {recipe.epochs} epochs; use it, or take another --name")
    end_if_diverged(output)
    if data.split.test:
        evaluate(as_chosen(config.model_copy(update={"resume": TrainingDir(config.output_dir).best})), data)
    return output.path


def end_if_diverged(output: TrainingDir) -> None:
    """Raise SystemExit, after a message, if a retraining has diverged. A last row that a kill cut off is written."""
    row = last_row(output)
    if row.get("end_reason") == EndReason.NON_FINITE:
        logger.info(
            f"{output.path} diverged in epoch {row['epoch']}: no test case is scored; take another recipe, with "
            "--trial or --config, and another --name"
        )
        raise SystemExit(1)


@contextmanager
def place_to_train(
    run: Run, recipe: TrainConfig, gpus: int, nodes: int, address: str | None
) -> Iterator[Callable[..., object]]:
    """Check what a retraining takes, before anything is written; yield a function that trains with it.

    gpus: of this machine, or of each of several nodes of the cluster at the address. The function takes a config, its
    Data and tests_follow, and raises as train_in_processes.

    Raises:
        InputError: if its steps cannot be divided, there are fewer GPUs, or as checked_nodes.
    """
    if undivided := undivided_patches(recipe, gpus * nodes):
        raise InputError(
            f"{undivided} (--gpus {gpus} x --nodes {nodes}); take {fitting_processes(recipe)} of them, or another "
            "recipe: --config FILE, a copy of the winner's with other accumulation_steps"
        )
    if nodes > 1:
        from tune.driver.node_training import checked_nodes  # here, as it imports Ray

        with checked_nodes(run, recipe.device, gpus, nodes, address) as trainer:
            yield trainer.train
    elif gpus > 1:
        yield partial(train_in_processes, processes=gpus, make_group=group_here(recipe, gpus))
    else:
        yield train


def begin(run: Run, recipe: TrainConfig, output: TrainingDir, done: int, *, with_val: bool) -> tuple[TrainConfig, Data]:
    """Write the split of a retraining into its folder, made if missing, and prepare its cases; return config and cases.

    done: its finished epochs.

    Raises:
        InputError: if the folder has a retraining with another split, recipe or epochs; as prepare_same_cases.
    """
    split = with_val_trained(run.split()) if with_val else run.split()
    refuse_other_split(output.split, split)
    output.path.mkdir(parents=True, exist_ok=True)
    save_split(split, output.split)
    config = training_config(run, recipe, output, go_on=done > 0)
    if with_val and config.scheduler == "plateau":
        logger.info(f"nothing is validated, so scheduler plateau has nothing to watch: lr stays at {config.lr:g}")
    if done:
        refuse_other_recipe(output, config)
    return config, prepare_same_cases(run, config)


def choose_training(
    run: Run, number: int | None, config_file: Path | None, epochs: int | None, name: str | None, *, with_val: bool
) -> tuple[TrainingDir, TrainConfig]:
    """Return the folder of a retraining, and its recipe, scaled to its epochs. The arguments are those of retrain.

    Raises:
        InputError: as choose_recipe; for a name that is no folder's, the folder of a sweep or an ensemble, or if the
            file of labels or weights that the sweep had is gone.
    """
    trial, recipe, label = choose_recipe(run, number, config_file)
    epochs = epochs or recipe.epochs
    output = choose_output(run, name if name is not None else f"{label}_{epochs}_epochs{'_with_val' * with_val}")
    if is_ensemble(output.path):
        raise InputError(f"{output.path} is an ensemble; go on with its --folds and --seeds, or take another --name")
    run.require_file("labels")
    if not output.latest.exists() and (config_file is None or recipe.pretrained is None):
        run.require_file("pretrained")
    if recipe.scheduler == "plateau" and not began_with_plateau(output):
        recipe = without_plateau(run, trial, recipe, with_val=with_val)
    return output, scale_to_epochs(recipe, epochs)


def choose_output(run: Run, name: str) -> TrainingDir:
    """Return the folder of this name below RUN/retrain; InputError if the name is no folder's, or it is a sweep's."""
    check_folder_name(name, run.dir.retrain)
    output = TrainingDir(run.dir.retrain / name)
    refuse_sweep(output.path)
    return output


def check_folder_name(name: str, folder: Path) -> None:
    """Raise InputError if a name would not make a folder of its own, visible, directly in `folder`."""
    size = len(os.fsencode(name))
    if not name.strip() or name.startswith(".") or "/" in name or not name.isprintable() or size > MAX_NAME_BYTES:
        raise InputError(
            f"--name {name[:80]!r}: expected the name of a folder in {folder}: 1 to {MAX_NAME_BYTES} bytes, "
            "no dot at the start, no slash"
        )


def choose_recipe(
    run: Run, number: int | None, config_file: Path | None
) -> tuple[TrialResult | None, TrainConfig, str]:
    """Return the recipe to train, its trial, None if it is config_file's, and a label for its folder.

    The label is trial_0007, or config_file's name without its ending. If neither is given and the winner was confirmed,
    it is the recipe that the confirmation chose, and that is said.

    Raises:
        InputError: if the run has no trial `number`, or without a number no trial with a score, both also with a
            config_file; if the winner is to be trained and has not ended by itself; if config_file is no valid recipe.
    """
    if number is None and config_file is None and (chosen := confirmed_choice(run)) is not None:
        name, number = chosen
        logger.info(f"trains {name}, which the confirmation of the sweep chose; --trial names another one")
        if number is None:
            config_file = run.dir.confirm.chosen
            return None, make_config(load_options(config_file), str(config_file)), name
    trial = run.best() if number is None else run.trial(number)
    if config_file is not None:
        return None, make_config(load_options(config_file), str(config_file)), config_file.stem
    if number is None and not trial.finished:
        raise InputError(f"{run.folder}: no trial has ended by itself yet; wait, or name one with --trial")
    return trial, run.recipe(trial), f"trial_{trial.number:04d}"


def training_config(run: Run, recipe: TrainConfig, output: TrainingDir, *, go_on: bool) -> TrainConfig:
    """Return the options of the retraining in `output`: the recipe, the run's cases, the split in `output`, patience 0.

    It starts from the weights that the sweep's trials started from, unless the recipe names others.

    go_on: resume from the latest checkpoint in `output`.
    """
    paths = {
        "output_dir": output.path.resolve(),
        "data_dir": run.config.fixed("data_dir"),
        "cache_dir": run.config.record.cache_dir,
        "labels": run.config.train.get("labels"),
        "split_file": output.split.resolve(),
        "resume": output.latest if go_on else None,
        "pretrained": None if go_on else recipe.pretrained or run.config.fixed("pretrained"),
    }
    as_in_the_sweep = ("patients", "allow_split_patients", "allow_seen_cases", "background", "resample")
    paths |= {name: run.config.fixed(name) for name in as_in_the_sweep}
    return make_config({**to_dict(recipe), **paths, "patience": 0}, str(output.path))


def prepare_same_cases(run: Run, config: TrainConfig) -> Data:
    """Prepare the cases that a retraining's config names, and return them.

    Raises:
        InputError: if the cases of its split are not those that the run began with, or as prepare_data.
    """
    assert config.split_file is not None
    # prepared with the run's split: in a run of an older version its training cases tell the voxel size
    as_in_the_run = config.model_copy(update={"split_file": run.dir.split})
    data = prepare_data(as_in_the_run, begun=True, begun_with=run.config.record.voxel_size)
    data = replace(data, split=load_split(config.split_file))
    if digest_of(data) != run.config.record.data:
        changed = changed_cases(data.contents, load_contents(run.dir.contents))
        raise InputError(
            f"{config.data_dir}: the cases are not those that {run.folder} began with{changed and f': {changed}'}; "
            "restore them"
        )
    return data


def divide_into_folds(run: Run, data: Data, folds: int) -> list[Split]:
    """Return a split per fold of the train and val cases of prepared cases, by patient, in the order of the run's seed.

    Raises:
        InputError: for fewer patients than folds.
    """
    scans = {name: scan_of(content) for name, content in data.contents.items()}
    table = run.config.fixed("patients")
    patients = find_patients(data.split.names, scans, None if table is None else Path(table)).of_case
    return fold_splits(data.split, folds, run.config.seed, patients)


def with_val_trained(split: Split) -> Split:
    """Return a split whose validation cases are among those to train on."""
    return Split(tuple(sorted(split.train + split.val)), (), split.test)


def refuse_other_split(file: Path, split: Split) -> None:
    """Raise InputError if `file`, of the folder of a retraining, has another split; a missing file is fine."""
    if file.exists() and (begun := load_split(file)) != split:
        raise InputError(
            f"{file.parent} was begun {'without' if begun.val else 'with'} the validation cases among those to train "
            "on; with another split its model could not be scored: take another --name"
        )


def refuse_other_recipe(output: TrainingDir, config: TrainConfig) -> None:
    """Raise InputError if the retraining in `output` was begun with another recipe or number of epochs."""
    begun, now = to_dict(make_config(load_options(output.config), str(output.config))), to_dict(config)
    for name in ["epochs", *option_names(role="recipe")]:
        if begun[name] != now[name]:
            raise InputError(
                f"{output.path} was begun with {name} {begun[name]}, and it would be {now[name]} now: "
                "take another --name"
            )
