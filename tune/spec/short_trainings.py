"""What sweeps of short trainings do otherwise: what is known from long ones does not count, and trials stop sooner."""

from __future__ import annotations

import math

from trainable.core.logger import logger
from tune.spec.sections import EarlyStopping
from tune.spec.sweep_config import SweepConfig


def training_steps(config: SweepConfig, train_cases: int) -> int:
    """Return the optimizer steps of a whole training of the default recipe.

    train_cases: number of the cases that are trained on.
    """
    recipe = config.base_config()
    patches = recipe.patches_per_epoch or train_cases
    return recipe.epochs * math.ceil(patches / (recipe.batch_size * recipe.accumulation_steps))


def adapted_if_short(config: SweepConfig, train_cases: int, *, begun: bool = False) -> SweepConfig:
    """Return the config for short trainings, if a training has fewer steps than searcher.prior_min_steps. Says so.

    It has no `start:` and no priors, and asha compares trials from the second one at a rung on, unless min_trials is
    another number than the default. A config without any of these priors and start recipes stays as it is.

    Args:
        train_cases: number of the cases that are trained on.
        begun: whether its study has begun, so that the rule by which trials are stopped stays.
    """
    least, known = config.searcher.prior_min_steps, bool(config.start) or config.space.has_prior
    steps = training_steps(config, train_cases) if known and least else 0
    if not known or steps >= least:
        return config
    stopping, text = config.early_stopping, "does without them"
    if stopping.type == "asha" and stopping.min_trials == EarlyStopping().min_trials and not begun:
        stopping = stopping.model_copy(update={"min_trials": 1})
        text += f", and has early_stopping.min_trials 1 in place of {config.early_stopping.min_trials}"
    logger.info(
        f"a training has {steps:,} steps, and what `start:` and `prior:` say is of {least:,} or more "
        f"(searcher.prior_min_steps): this sweep {text}"
    )
    knows_nothing = {"space": config.space.without_priors(), "start": (), "start_names": ()}
    return config.model_copy(update={**knows_nothing, "early_stopping": stopping})
