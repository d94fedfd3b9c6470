"""What a plan of trainings is made of: trainings that are wanted, and how they ended, as their folders have it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainable.core.config import TrainConfig
from trainable.core.errors import InputError
from trainable.core.option_files import load_options
from trainable.core.options import make_config, option_names, path_options, to_dict
from trainable.data.split import load_split
from trainable.training.scored_models import has_scores_of
from trainable.training.training_dir import TrainingDir
from trainable.training.training_log import read_rows
from tune.driver.processes.training_process import divergence


@dataclass(frozen=True)
class Training:
    """A training that is wanted.

    name: unique; shown in the table and in messages, such as "trial_0031 seed_1000001 fold_2". config: its output_dir
    is the training's folder, with the layout of `voxtune train`; cache_dir and split_file name prepared cases; `resume`
    is set when it goes on. test: afterwards score the test cases with its best model.
    """

    name: str
    config: TrainConfig
    test: bool = False

    @property
    def dir(self) -> TrainingDir:
        """The paths in its folder."""
        return TrainingDir(self.config.output_dir)


@dataclass(frozen=True)
class Outcome:
    """How a training ended. error: "" if it has a model, else in one line why not (diverged, out of memory, failed)."""

    name: str
    folder: Path
    error: str


# Called at the start and after each training that ended. Returns the trainings that are wanted now, the most urgent
# first. What runs and is not wanted any more is cancelled; all is done when everything wanted has ended.
Plan = Callable[[Mapping[str, Outcome]], Sequence[Training]]


def earlier_outcome(training: Training) -> Outcome | None:
    """Return the outcome of a training that has ended before, by its folder; None if something is left to do.

    Raises:
        InputError: if the folder has another training.
    """
    check_same_training(training)
    row = (read_rows(training.dir.metrics) or [{"end_reason": ""}])[-1]
    error = divergence(row)
    paths = training.dir
    if not row["end_reason"] or (
        training.test and not error and not has_scores_of(paths.test_scores.with_suffix(".json"), [paths.best])
    ):
        return None
    return Outcome(training.name, training.dir.path, error)


def check_same_training(training: Training) -> None:
    """Raise InputError if a training's folder has one that was begun with other options or another split."""
    paths = training.dir
    if not paths.config.exists():
        return
    begun = to_dict(make_config(load_options(paths.config), str(paths.config), begun=True))
    now = to_dict(training.config)
    for name in [*option_names(role="recipe"), *option_names(role="protocol")]:
        if name not in path_options() and begun[name] != now[name]:
            raise InputError(
                f"{paths.path} was begun with {name} {begun[name]}, and it would be {now[name]} now: move the "
                "folder away, or take the options that it was begun with"
            )
    assert training.config.split_file is not None
    if paths.split.exists() and load_split(paths.split) != load_split(training.config.split_file):
        raise InputError(f"{paths.path} was begun with another split; move the folder away")
