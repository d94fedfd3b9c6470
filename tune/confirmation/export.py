"""The recipe of a trial as a file that trains it anywhere, and where it may be written."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from trainable.core.config import TrainConfig
from trainable.core.errors import InputError
from trainable.core.files import refuse_unusable, unwritable_as_input_error
from trainable.core.logger import logger
from trainable.core.option_files import dump_yaml
from trainable.core.options import option_names, path_options, to_dict, words_of
from trainable.data.split import load_split, save_split
from tune.confirmation.status import confirmation_text
from tune.run.results import Run, TrialResult

HAS_THE_SPLIT = "has the split by case names"  # behind the name of the split's file in the head of a recipe


def export_recipe(run: Run, trial: TrialResult, path: Path) -> None:
    """Write recipe_text to a file and the run's split beside it; print the command that trains the recipe.

    Raises:
        InputError: before anything is written, if one of the two files exists and is not of an earlier export, the
            folder is missing, or the run's split.json is missing or is not the one that the run began with; also if a
            file cannot be written.
    """
    split_file = path.with_name(f"{path.stem}.split.json")
    split = run.split()
    again = refuse_other_files(path, split_file)
    if not again and split_file.exists() and load_split(split_file) != split:
        raise InputError(f"{split_file} exists and has another split; choose another name for --export")
    is_winner = bool(run.ranking) and trial.number == run.best().number
    notes = [line] if is_winner and (line := confirmation_text(run)[0]) else []
    text = recipe_text(run, trial, split_file.name, notes)
    with unwritable_as_input_error(path, "--export"):
        save_split(split, split_file)
        path.write_text(text)
    instead = ", in place of an earlier export" if again else ""
    logger.info(
        f"wrote {path}{instead}: voxtune train --config {shlex.quote(str(path))} --data_dir DIR --output_dir OUT"
    )
    logger.info(
        f"wrote {split_file}, the split of the sweep; on the same cases: --split_file {shlex.quote(str(split_file))}"
    )
    if (weights := run.config.fixed("pretrained")) is not None:
        logger.info(f"the trial started from {weights}; to start from these weights: --pretrained FILE")


def refuse_other_files(path: Path, split_file: Path) -> bool:
    """Return whether `path` is an earlier export, which may be replaced.

    Raises:
        InputError: if it is anything else that exists, such as a file of the run, or its folder is missing.
    """
    refuse_unusable(path, "--export", "best.yaml")
    if not path.exists():
        return False
    if not is_export(path, split_file.name):
        raise InputError(
            f"{path} exists and is no earlier export of that name; nothing is written: choose another name for --export"
        )
    return True


def is_export(path: Path, split_file: str) -> bool:
    """Return whether a file begins as recipe_text with this split_file; RUN/best/config.yaml names another one."""
    try:
        with path.open() as file:
            lines = list(islice(file, 3))
    except (OSError, UnicodeDecodeError):
        return False
    return (
        len(lines) == 3 and lines[0].startswith("# trial ") and lines[2].startswith(f"# {split_file} {HAS_THE_SPLIT}")
    )


def recipe_text(run: Run, trial: TrialResult, split_file: str, notes: Sequence[str] = ()) -> str:
    """Return all options of a trial as YAML, for `voxtune train --config` and `voxtune retrain --config` anywhere.

    Options that are of one machine or folder are left out: paths, the device, what was allowed of particular cases. The
    seed is the sweep's, not the trial's, so that the cases of the sweep are split as the sweep has split them: among
    the test cases of another split could be some that selected the trial.

    Args:
        split_file: where the split is, for the comments at the head.
        notes: further lines for the head.
    """
    record, objective = run.config.record, run.config.objective
    score = "no score"
    if trial.score is not None:
        score = f"{objective.score} {trial.score:.4f} at epoch {trial.best_epoch}"
    head = [
        f"trial {trial.number} of {run.folder.name}: {score}",
        f"voxtune {record.versions.get('voxtune', 'of an unknown version')}, data {record.data}, split {record.split}",
        f"{split_file} {HAS_THE_SPLIT}; to train on the cases of the sweep: --split_file",
        f"seed is that of the sweep, which draws its split; the trial was trained with seed {trial.seed}",
    ]
    return portable_recipe(run, run.recipe(trial), [*head, *notes])


def portable_recipe(run: Run, config: TrainConfig, head: Sequence[str]) -> str:
    """Return a recipe of a run as YAML, without the options that are of one machine or folder.

    Args:
        config: its seed becomes the sweep's.
        head: lines of comments, to which the files are added that the sweep had and the recipe cannot name.
    """
    left_out = {*option_names(role="run", exported=False), *path_options()}
    if str(run.config.fixed("labels")) in words_of("labels"):
        left_out.discard("labels")  # a name, no file
    recipe = {name: value for name, value in to_dict(config).items() if name not in left_out}
    recipe["seed"] = run.config.seed
    lines = list(head)
    for option in ("pretrained", "patients", "labels"):
        if (path := run.config.fixed(option)) is not None and str(path) not in words_of(option):
            lines.append(
                f"the sweep had {option}: {Path(path).name}, which is not in this file; give it with --{option}"
            )
    return "".join(f"# {line}\n" for line in lines) + dump_yaml(recipe)
