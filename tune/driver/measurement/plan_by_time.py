"""`launch --hours`: measures on the cluster, and chooses what the sweep tries in that time."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import ray

from trainable.core.counted import counted
from trainable.core.errors import InputError
from trainable.core.logger import logger
from trainable.data.local_cases import cases_here
from trainable.data.prepare import Data
from trainable.data.split import save_split
from tune.driver.cluster.connection import Slots
from tune.driver.measurement.gpu_sharing import DoesNotFit
from tune.driver.measurement.recipe_timing import measure_costs, untried_text
from tune.planning.recipe_costs import Costs
from tune.planning.time_plan import GivenTime, make_plan
from tune.spec.sweep_config import SweepConfig

START_AND_END_SECONDS = 15.0  # until the processes of the first trials train, and after the last: what ends a sweep


def plan_by_time(config: SweepConfig, data: Data, slots: Slots, given: GivenTime) -> SweepConfig:
    """Return the config with the trials, epochs, rungs, time_budget and confirmation that the given time has room for.

    Raises:
        InputError: if the time is too short, the default recipe does not fit into the GPU's memory, or one fails.
    """
    logger.info(f"--hours {given.hours:g}: measuring some steps and a validation, as soon as a trial's place is free")
    costs = measure_on_cluster(config, data)
    count, share = slots.count(), config.resources.all_gpus
    if slots.autoscales:
        logger.info(
            f"the plan counts on the {counted(count, 'slot')} of the nodes that are there now, not on added ones"
        )
    plan = make_plan(
        config,
        costs,
        given.hours * 3600,
        slots=count,
        gpus=round(count * share + 0.499) if share else 0,
        given=given.keys,
        before=time.monotonic() - given.started + START_AND_END_SECONDS,
    )
    logger.info(plan.text())
    return plan.config.with_record(plan=plan.text())


def measure_on_cluster(config: SweepConfig, data: Data) -> Costs:
    """Return what recipes cost, measured in the place of a trial, or on a whole GPU that several share.

    Raises: as plan_by_time.
    """
    share = config.resources.gpu_share
    options: dict[str, Any] = {"num_cpus": config.resources.cpu, "num_gpus": max(1, share) if share else 0}
    try:
        return ray.get(ray.remote(max_retries=0, **options)(measure_there).remote(config, data, data.contents))
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, DoesNotFit):
            raise InputError(f"{error.cause}; lower train.target_shape or train.batch_size") from None
        if isinstance(error.cause, InputError):
            raise InputError(str(error.cause)) from None
        raise InputError(untried_text(str(error))) from None


def measure_there(config: SweepConfig, data: Data, contents: dict[str, str]) -> Costs:
    """Return measure_costs on this machine, whose cases are prepared first if it lacks some.

    Raises: as measure_costs; CacheError as cases_here.
    """
    return measure_costs(config, sweep_cases_here(config, data, contents))


def sweep_cases_here(config: SweepConfig, data: Data, contents: dict[str, str]) -> Data:
    """Return the cases of a sweep that has no folder yet as this machine has them; prepare those that it lacks.

    Raises: CacheError as cases_here.
    """
    with tempfile.TemporaryDirectory(prefix="voxtune-split-") as folder:
        split_file = Path(folder, "split.json")
        save_split(data.split, split_file)
        return cases_here(data, config.base_config(cache_dir=data.folder, split_file=split_file), contents)
