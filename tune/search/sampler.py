"""Who proposes the next recipe."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.search_space import IntersectionSearchSpace
from optuna.trial import FrozenTrial, TrialState

from trainable.core.logger import logger
from tune.search.memory_limits import out_of_memory
from tune.search.prior_guard import MIN_ENDED, prior_misleads
from tune.search.recipe_sampler import ModelSampler, SobolStartupSampler
from tune.search.tpe import tpe_sampler
from tune.search.tried import recipes_of
from tune.spec.space import encode_values, key_of
from tune.spec.sweep_config import SweepConfig


def make_sampler(
    config: SweepConfig, number: int, search_space: IntersectionSearchSpace, trials: Sequence[FrozenTrial]
) -> optuna.samplers.BaseSampler:
    """Return the sampler that proposes trial `number`; config.unmodelled_options lists what it draws at random.

    Args:
        number: of the trial; the sampler is seeded from config.seed and this.
        search_space: of the study, the same object for all its samplers: it keeps which params all trials have, so that
            each trial is read once.
        trials: of the study so far. While the type of searcher, unless random, can learn from fewer than startup_trials
            of them, the sampler is SobolStartupSampler.
    """
    seed = int(np.random.SeedSequence([config.seed, number]).generate_state(1)[0])
    kind, startup = config.searcher.type, config.searcher.startup_trials
    samplers = optuna.samplers
    learns_from = (TrialState.COMPLETE, TrialState.PRUNED) if kind in ("bayes", "tpe") else (TrialState.COMPLETE,)
    if kind != "random" and sum(trial.state in learns_from for trial in trials) < startup:
        tried = {key_of(values) for values in recipes_of(config.space, trials).values()}
        misled = prior_misleads(config.space, trials)
        limits = out_of_memory(config.space, trials)
        return SobolStartupSampler(config.space, config.seed, number, tried, limits=limits, misled=misled)
    match kind:
        case "random":
            return samplers.RandomSampler(seed=seed)
        case "gp":
            return samplers.GPSampler(seed=seed, n_startup_trials=startup)
        case "cmaes":
            return samplers.CmaEsSampler(seed=seed, n_startup_trials=startup)
        case "bayes":
            return ModelSampler.of(config, number, trials)
        case _:
            return tpe_sampler(config, search_space, trials, seed)


def say_if_misled(sampler: optuna.samplers.BaseSampler, *, said: bool) -> bool:
    """Log, unless it is said already, that the trials contradict the prior of the space; return whether it is said."""
    misled = bool(getattr(sampler, "misled", False))
    if misled and not said:
        logger.info(
            "the trials so far contradict the prior: recipes that it expects to be good are no better than others, so "
            "it does not count any more, unless later trials say otherwise"
        )
    return said or misled


def first_recipes(config: SweepConfig, count: int) -> list[dict[str, Any]]:
    """Return the searched options' values of a sweep's first trials: those of config.given_recipes, then drawn ones.

    They are those that do not depend on scores: all of a random searcher or of a space that the trials exhaust, else
    startup_trials, in a space with priors MIN_ENDED of them, and at least config.given_recipes. There are at most
    `count` and at most budget.trials. A trial that runs out of GPU memory may change those after it.
    """
    known = config.budget.trials if config.searcher.type == "random" else config.searcher.startup_trials
    if config.space.has_prior and config.searcher.type != "random":
        known = min(known, MIN_ENDED)
    study = optuna.create_study(direction="maximize")
    given = [values for _, values in config.given_recipes]
    for recipe in given:
        study.enqueue_trial(encode_values(recipe))
    recipes: list[dict[str, Any]] = []
    finite = config.space.untried(config.budget.trials, ()) is not None
    known = config.trials_left(0, ()) if finite else max(known, len(given))
    for number in range(min(count, known, config.budget.trials)):
        if number >= len(given) and (values := next_untried(config, number, recipes)):
            study.enqueue_trial(encode_values(values))
        study.sampler = make_sampler(config, number, IntersectionSearchSpace(), study.get_trials(deepcopy=False))
        recipes.append(config.space.suggest(study.ask()))
    return recipes


def next_untried(config: SweepConfig, number: int, tried: Iterable[dict[str, Any]]) -> dict[str, Any] | None:
    """Return a recipe that trial `number` is to try, of those left of a space that the sweep's trials exhaust.

    Drawn at random from config.seed and number; None if the space has more recipes than study.trials, or none is left.
    """
    untried = config.space.untried(config.budget.trials, tried)
    if not untried:
        return None
    return untried[int(np.random.default_rng([config.seed, number]).integers(len(untried)))]
