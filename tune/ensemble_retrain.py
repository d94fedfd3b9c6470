"""Retrains a recipe of a sweep several times, on folds and with several seeds: the members of an ensemble."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from trainable.core.config import TrainConfig
from trainable.core.counted import counted
from trainable.core.device import choose_device
from trainable.core.epoch_scale import scale_to_epochs
from trainable.core.errors import InputError
from trainable.core.locks import lock_folder
from trainable.core.logger import logger
from trainable.cross_validation import Fold, cross_validate
from trainable.data.prepare import Data
from trainable.data.split import Split, fold_splits, load_split, save_split
from trainable.evaluate import as_chosen, evaluate
from trainable.training.ensemble import has_ended
from trainable.training.scored_models import has_scores_of
from trainable.training.training_dir import EnsembleDir, TrainingDir
from tune.confirmation.plan import unused_seeds
from tune.driver.cluster.connection import Cluster
from tune.driver.launch.node_check import check_nodes_for
from tune.driver.trainings import Outcome, Training, run_trainings
from tune.followed_plateau import without_plateau
from tune.retrain import (
    choose_output,
    choose_recipe,
    divide_into_folds,
    prepare_same_cases,
    refuse_other_split,
    training_config,
    with_val_trained,
)
from tune.run.results import Run, read_run

# From the sweep's seed to those of members: not those of a confirmation, whose scores may have chosen the recipe.
SEED_OFFSET = 2_000_000


@dataclass(frozen=True)
class EnsembleRequest:
    """What a user asks to train, see `voxtune retrain --help`.

    folds: number of folds that the train and val cases are divided into anew; 0 for the sweep's own split. seeds:
    number of trainings per fold. The others are those of tune.retrain.retrain.
    """

    folds: int
    seeds: int
    number: int | None = None
    config_file: Path | None = None
    epochs: int | None = None
    with_val: bool = False
    name: str | None = None

    def check(self) -> None:
        """Raise InputError for options that exclude each other."""
        if self.with_val and self.folds:
            raise InputError(
                "--with_val trains on the validation cases, and each fold of --folds is validated by the others: "
                "drop one"
            )

    def folder_name(self, label: str, epochs: int) -> str:
        """Return the name of the ensemble's folder. label: of the recipe. epochs: of a training."""
        if self.name is not None:
            return self.name
        folds = f"_{self.folds}_folds" * bool(self.folds)
        return f"{label}_{epochs}_epochs{'_with_val' * self.with_val}{folds}_{self.seeds}_seeds"


@dataclass(frozen=True)
class EnsembleTrainings:
    """The trainings of an ensemble.

    dir: its folder. base: the options that all share. seeds: of the trainings, the same for each fold. splits: one per
    fold, or only the one of all.
    """

    dir: EnsembleDir
    base: TrainConfig
    seeds: tuple[int, ...]
    splits: tuple[Split, ...]

    @property
    def in_folds(self) -> bool:
        """Whether the cases are divided into folds."""
        return len(self.splits) > 1

    def member(self, fold: int, seed: int) -> TrainingDir:
        """Return the folder of a member."""
        return self.dir.member(f"fold_{fold}_seed_{seed}" if self.in_folds else f"seed_{seed}")

    def all(self) -> list[Training]:
        """Return all trainings, the folds of the first seed first."""
        trainings = []
        for seed in self.seeds:
            for fold in range(len(self.splits)):
                member = self.member(fold, seed)
                changes = {"seed": seed, "output_dir": member.path.resolve(), "split_file": member.split.resolve()}
                trainings.append(Training(member.path.name, self.base.model_copy(update=changes)))
        return trainings

    def make_folders(self) -> None:
        """Make the folder of each member with its split, so that one which is not trained yet is missed.

        Raises:
            InputError: if the ensemble was begun with other folds or seeds.
        """
        members = {self.member(fold, seed): split for seed in self.seeds for fold, split in enumerate(self.splits)}
        names = {member.path.name for member in members}
        begun = {path.name for path in self.dir.members.iterdir()} if self.dir.members.exists() else set[str]()
        begun = {name for name in begun if (self.dir.members / name).is_dir()}
        others = [
            member for member, split in members.items() if member.split.exists() and load_split(member.split) != split
        ]
        if begun - names or others:
            raise InputError(
                f"{self.dir.path} was begun with other folds or seeds: {', '.join(sorted(begun))}; take another --name"
            )
        for member, split in members.items():
            member.path.mkdir(parents=True, exist_ok=True)
            save_split(split, member.split)

    def folds(self) -> list[Fold]:
        """Return the cases of each fold with the trainings that score them."""
        return [
            Fold(split.val, tuple(self.member(index, seed).path for seed in self.seeds))
            for index, split in enumerate(self.splits)
        ]


def retrain_ensemble(
    run_dir: Path, request: EnsembleRequest, *, cluster: Cluster | None = None, address: str | None = None
) -> Path:
    """Train the members of an ensemble in RUN/retrain/<name>/members, and score them together.

    With folds, all train and val cases are then scored out of fold (cross_validation.csv and .json); the test cases, if
    there are any, are scored once by all members together (test_scores.csv and .json). Called again, this continues
    what was interrupted; if members were trained on since they were scored, as by `voxtune train --resume`, it scores
    them again.

    Args:
        run_dir: RUN.
        request: what is trained.
        cluster: an entered Cluster, which is left open; None for a new Cluster(address).

    Returns:
        The folder, RUN/retrain/<name>.

    Raises:
        InputError: as retrain; for folds that cannot be made, or if the folder has an ensemble of other folds, seeds or
            options; if a member has no model at the end.
        SystemExit: as run_trainings.
    """
    request.check()
    run = read_run(run_dir)
    trial, recipe, label = choose_recipe(run, request.number, request.config_file)
    epochs = request.epochs or recipe.epochs
    folder = EnsembleDir(choose_output(run, request.folder_name(label, epochs)).path)
    refuse_single(folder)
    command = resume_command(run, request, None if trial is None else trial.number, address)
    run.require_file("labels")
    if request.config_file is None or recipe.pretrained is None:
        run.require_file("pretrained")
    if request.with_val and recipe.scheduler == "plateau":
        recipe = without_plateau(run, trial, recipe, with_val=True)
    recipe = scale_to_epochs(recipe, epochs)
    split = with_val_trained(run.split()) if request.with_val else run.split()
    if request.folds:
        fold_splits(split, request.folds, run.config.seed)  # refuses more folds than cases before a folder is made
    folder.path.mkdir(parents=True, exist_ok=True)
    with lock_folder(folder.path):
        refuse_other_split(folder.split, split)
        save_split(split, folder.split)
        config = training_config(run, recipe, TrainingDir(folder.path), go_on=False)
        data = prepare_same_cases(run, config)
        trainings = plan_trainings(run, request, folder, config, data)
        trainings.make_folders()
        if outdated_scores(folder) and all(map(has_ended, members_of(folder))):
            logger.info(f"members of {folder.path} were trained on since they were scored: they are scored again")
        else:
            train_members(run, trainings, command, cluster=cluster, address=address)
        score(trainings, config, data)
    return folder.path


def train_members(
    run: Run, trainings: EnsembleTrainings, command: str, *, cluster: Cluster | None, address: str | None
) -> None:
    """Train the members of an ensemble to their ends.

    Args:
        run: the sweep.
        trainings: what is trained.
        command: that goes on if this is interrupted.
        cluster, address: as for retrain_ensemble.

    Raises: as retrain_ensemble.
    """
    outcomes = run_trainings(
        lambda _: trainings.all(),
        trainings.dir.members,
        run.config.resources,
        cluster=cluster,
        address=address,
        contents_file=run.dir.contents,
        check=partial(check_nodes_for, run),
        resume_command=command,
    )
    refuse_failed(outcomes, trainings.dir, command)


def plan_trainings(
    run: Run, request: EnsembleRequest, folder: EnsembleDir, config: TrainConfig, data: Data
) -> EnsembleTrainings:
    """Return the trainings of an ensemble.

    config: of a single retraining in the ensemble's folder. data: the prepared cases, with the split of all members.

    Raises:
        InputError: for fewer patients than folds.
    """
    splits: tuple[Split, ...] = (data.split,)
    if request.folds:
        splits = tuple(divide_into_folds(run, data, request.folds))
    base = config.model_copy(update={"cache_dir": data.folder, "save_freq": config.epochs + 1})
    return EnsembleTrainings(folder, base, unused_seeds(run, request.seeds, SEED_OFFSET), splits)


def refuse_single(folder: EnsembleDir) -> None:
    """Raise InputError if the folder has a retraining of a single model, or is done."""
    if TrainingDir(folder.path).latest.exists():
        raise InputError(f"{folder.path} is a retraining of a single model; take another --name")
    if folder.test_scores.with_suffix(".json").exists() and not outdated_scores(folder):
        raise InputError(f"{folder.path} is done; use it, or take another --name")


def members_of(folder: EnsembleDir) -> list[TrainingDir]:
    """Return the folders of the trainings in an ensemble's folder, sorted by name; [] before there are any."""
    return [TrainingDir(path) for path in sorted(folder.members.glob("*")) if path.is_dir()]


def outdated_scores(folder: EnsembleDir) -> bool:
    """Return whether an ensemble's folder has scores, out of fold or of test cases, that are not of its weights now."""
    models = [member.best for member in members_of(folder)]
    files = [stem.with_suffix(".json") for stem in (folder.cross_validation, folder.test_scores)]
    return any(file.exists() and not has_scores_of(file, models) for file in files)


def refuse_failed(outcomes: Mapping[str, Outcome], folder: EnsembleDir, command: str) -> None:
    """Raise InputError if a member has no model."""
    if failed := [outcome for outcome in outcomes.values() if outcome.error]:
        lines = sorted(f"{outcome.name}: {outcome.error}" for outcome in failed)
        raise InputError(
            "\n  ".join([f"{len(failed)} of {len(outcomes)} members of {folder.path} have no model:", *lines])
            + f"\nTake another recipe, or, after removing the cause, go on with: {command}"
        )


def score(trainings: EnsembleTrainings, config: TrainConfig, data: Data) -> None:
    """Score all cases out of fold, if there are folds, then the test cases, if there are any, unless that is done.

    config: of a single retraining in the ensemble's folder.
    """
    folder = trainings.dir
    models = [member.best for member in members_of(folder)]
    scored = cross_validated_seeds(folder) == list(trainings.seeds)
    if trainings.in_folds and not (scored and has_scores_of(folder.cross_validation.with_suffix(".json"), models)):
        names = sorted(f"seed_{seed}" for seed in trainings.seeds)
        result = cross_validate(trainings.folds(), names, data, choose_device(config))
        about = {
            "seeds": list(trainings.seeds),
            "epochs": config.epochs,
            "metric": config.metric,
            "split": data.split.digest(),
        }
        result.save(folder.cross_validation, about)
        count = counted(len(result.scores), "case")
        logger.info(f"cross-validated: {count}, each by models that were not trained on it\n{result.table()}")
    if data.split.test and not has_scores_of(folder.test_scores.with_suffix(".json"), models):
        evaluate(as_chosen(config.model_copy(update={"resume": folder.path})), data)


def cross_validated_seeds(folder: EnsembleDir) -> list[int]:
    """Return the seeds whose trainings the cross-validated scores in an ensemble's folder are of; [] without scores."""
    try:
        return list(json.loads(folder.cross_validation.with_suffix(".json").read_text())["seeds"])
    except (OSError, ValueError, KeyError, TypeError):  # missing, or damaged
        return []


def resume_command(run: Run, request: EnsembleRequest, trial: int | None, address: str | None) -> str:
    """Return the command that goes on with an ensemble. trial: whose recipe is trained; None for one from a file."""
    options: dict[str, object] = {
        "--folds": request.folds or None,
        "--seeds": request.seeds,
        "--trial": trial,
        "--config": request.config_file,
        "--epochs": request.epochs,
        "--name": request.name,
        "--address": address,
    }
    words = [word for name, value in options.items() if value is not None for word in (name, str(value))]
    return shlex.join(["voxtune", "retrain", str(run.folder), *words, *["--with_val"] * request.with_val])
