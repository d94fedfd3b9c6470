"""A recipe whose lr falls by itself (scheduler plateau) as one whose lr falls where it did in the sweep."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from trainable.core.config import TrainConfig
from trainable.core.errors import InputError
from trainable.core.logger import logger
from trainable.core.option_files import load_options
from trainable.training.training_dir import TrainingDir
from trainable.training.training_log import read_rows
from tune.run.results import Run, TrialResult
from tune.run.run_dir import RunDir


def began_with_plateau(output: TrainingDir) -> bool:
    """Return whether `output` has a training with scheduler plateau, which then goes on with it."""
    return output.config.exists() and load_options(output.config)["scheduler"] == "plateau"


def without_plateau(run: Run, trial: TrialResult | None, recipe: TrainConfig, *, with_val: bool) -> TrainConfig:
    """Return a recipe with scheduler plateau as one whose lr falls where the trial's did, stretched with the epochs.

    A recipe of no trial is returned as it is, unless with_val leaves nothing for plateau to watch.

    Args:
        trial: that had the recipe; None for a recipe from a file.
        with_val: as for retrain.

    Raises:
        InputError: for with_val and a recipe of no trial; or if the rows of the trial are missing.
    """
    if trial is None:
        if with_val:
            raise InputError(
                "--with_val leaves no validation for scheduler plateau to watch: write `scheduler: multistep`, "
                "`milestones: [epochs after which lr falls]` and `step_gamma: its factor` into the file, or name a "
                "trial with --trial, whose lr is then followed"
            )
        return recipe
    folder, number = run.folder, str(trial.number)
    if trial.imported_from:  # its rows are where it ran
        folder, number = Path(trial.imported_from.rpartition(" trial ")[0]), trial.imported_from.rpartition(" ")[2]
    metrics = RunDir(folder).trial(int(number)).metrics
    rows = read_rows(metrics)
    if not rows:
        raise InputError(
            f"{metrics} is missing, and with it the lr that plateau gave trial {trial.number}; restore it, or "
            "write the recipe with `scheduler: multistep` into a file for --config"
        )
    milestones = reductions([(int(row["epoch"]), float(row["lr"])) for row in rows], recipe.plateau_factor)
    epochs = ", ".join(map(str, milestones))
    fell = f"fell by the factor {recipe.plateau_factor:g} after epochs {epochs}" if milestones else "never fell"
    logger.info(
        f"lr follows that of trial {trial.number}, where it {fell}, stretched with the epochs: scheduler multistep"
    )
    changes = {"scheduler": "multistep", "milestones": milestones, "step_gamma": recipe.plateau_factor}
    return recipe.model_copy(update=changes)


def reductions(lrs: Sequence[tuple[int, float]], factor: float) -> tuple[int, ...]:
    """Return the numbers of epochs after which plateau reduced lr, one that it reduced several times as often.

    Args:
        lrs: number and lr of each reported epoch, in their order; plateau reduces lr after a reported epoch only.
        factor: of a reduction; min_lr may have made the last one smaller.
    """
    found: list[int] = []
    for (epoch, lr), (_, later) in pairwise(lrs):
        if later < lr:
            found += [epoch] * max(1, round(math.log(later / lr) / math.log(factor)))
    return tuple(found)
