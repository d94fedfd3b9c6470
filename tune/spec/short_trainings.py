"""Sweeps of short trainings do without what is known from long ones: priors, and recipes to start with."""

from __future__ import annotations

import math

from trainable.core.logger import logger
from tune.spec.sweep_config import SweepConfig


def training_steps(config: SweepConfig, train_cases: int) -> int:
    """Return the optimizer steps of a whole training of the default recipe.

    train_cases: number of the cases that are trained on.
    """
    recipe = config.base_config()
    patches = recipe.patches_per_epoch or train_cases
    return recipe.epochs * math.ceil(patches / (recipe.batch_size * recipe.accumulation_steps))


def without_priors_if_short(config: SweepConfig, train_cases: int) -> SweepConfig:
    """Return the config without `start:` and priors if its trainings have fewer steps than searcher.prior_min_steps.

    Says so. train_cases: number of the cases that are trained on.
    """
    least, known = config.searcher.prior_min_steps, bool(config.start) or config.space.has_prior
    steps = training_steps(config, train_cases) if known and least else 0
    if not known or steps >= least:
        return config
    logger.info(
        f"a training has {steps:,} steps, and what `start:` and `prior:` say is of {least:,} or more "
        "(searcher.prior_min_steps): this sweep does without them"
    )
    return config.model_copy(update={"space": config.space.without_priors(), "start": (), "start_names": ()})
