"""A sweep in TensorBoard: RUN/tensorboard has a folder per trial, named by its recipe, and what the sweep searches."""

from __future__ import annotations

import shutil
from typing import Any

import numpy as np
from PIL import Image

from trainable.training.tensorboard_file import Board
from trainable.training.tensorboard_hparams import Interval, searched
from trainable.training.tensorboard_tags import picture_tag
from trainable.training.training_log import TrainingLog
from tune.run.results import Run, TrialResult
from tune.run.run_dir import RunDir
from tune.spec.kinds import Choice
from tune.spec.sweep_config import SweepConfig
from tune.viewers.trial_name import named_folder, trial_name

WINNER, SWEEP = "winner", "sweep"


def trial_log(paths: RunDir, config: SweepConfig, number: int, values: dict[str, Any]) -> TrainingLog:
    """Return the log of a trial: its files in RUN/trials, and its folder in RUN/tensorboard.

    values: the searched options of the trial.
    """
    name = trial_name(number, values, config.space.default_values())
    return TrainingLog(paths.trial(number).path, named_folder(paths.tensorboard, name), values)


def write_searched_options(paths: RunDir, config: SweepConfig) -> None:
    """Write what the sweep searches for the HParams tab as a run "sweep", in place of what an earlier attempt wrote."""
    options: dict[str, Interval | list[Any]] = {}
    for parameter in config.space.parameters:
        ends = parameter.kind.to_list()
        options[parameter.name] = ends if isinstance(parameter.kind, Choice) else (ends[0], ends[1])
    for earlier in paths.tensorboard.glob("events.out.tfevents.*"):  # of a version that wrote it beside the trials
        earlier.unlink()
    shutil.rmtree(paths.tensorboard / SWEEP, ignore_errors=True)
    Board(paths.tensorboard / SWEEP, 0).add_values(0, searched(options))


def write_winner(run: Run, trial: TrialResult) -> None:
    """Write the pictures of a trial at its best epoch as a run "winner ..." of their own, in place of an earlier one.

    Nothing is written if the trial has drawn none.
    """
    for earlier in run.dir.tensorboard.glob(f"{WINNER} *"):
        shutil.rmtree(earlier)
    pictures = {picture_tag(path.stem): np.asarray(Image.open(path)) for path in run.dir.trial(trial.number).drawn()}
    if pictures:
        name = trial_name(trial.number, trial.values, run.config.space.default_values())
        Board(run.dir.tensorboard / f"{WINNER} {name}", 0).add(trial.best_epoch, {}, pictures)
