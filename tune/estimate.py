"""`voxtune estimate`: what a sweep is likely to take, from a measurement of seconds on the device at hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from trainable.core.errors import InputError
from trainable.core.logger import logger
from trainable.core.parallel import cores
from trainable.data.prepare import Data, prepare_data
from tune.driver.cluster.connection import slots_for
from tune.driver.launch.run_files import refuse_no_validation
from tune.driver.measurement.gpu_sharing import DoesNotFit
from tune.driver.measurement.recipe_timing import measure_costs
from tune.planning.estimate import GPU_COUNTS, Estimate, make_estimate
from tune.spec.short_trainings import adapted_if_short
from tune.spec.sweep_config import SweepConfig

BEFORE_SECONDS = 20.0  # of a launch, until its first trial trains: Ray starts, then the processes of the trials


def estimate(
    config: SweepConfig,
    *,
    gpus: Sequence[int] = (),
    hours: float | None = None,
    given: frozenset[str] = frozenset(),
) -> Estimate:
    """Prepare the cases if they are not, measure, and simulate the sweep.

    Args:
        config: of the sweep.
        gpus: numbers of GPUs to tell of; by default GPU_COUNTS.
        hours: time to plan for, as launch --hours does; None for the trials of the YAML.
        given: keys that the user has set, which a plan keeps.

    Raises:
        InputError: for cases that cannot be used, a default recipe that does not fit into the GPU's memory, a recipe
            that cannot be trained, or a time that is too short.
    """
    config = with_local_gpu(config)
    share = config.resources.all_gpus
    if gpus and not share:
        raise InputError("--gpus: these trials train on the CPU, as resources.gpu is 0 or torch sees no GPU here")
    data = prepare_data(config.base_config())
    refuse_no_validation(data.split)
    config = adapted_if_short(config, len(data.split.train))
    logger.info("measuring some steps and a validation of the default and of the largest recipe")
    try:
        costs = measure_costs(config, data)
    except DoesNotFit as error:
        raise InputError(f"{error}; lower train.target_shape, train.batch_size or train.base_channels") from None
    on_cpu = [(0, max(1, cores() // (config.resources.cpu * config.resources.nodes)))]
    places = [(count, slots_for(count, share)) for count in gpus or GPU_COUNTS] if share else on_cpu
    seconds = None if hours is None else hours * 3600
    return make_estimate(
        config, costs, places, seconds=seconds, before=BEFORE_SECONDS, given=given, cache_bytes=cache_bytes(data)
    )


def with_local_gpu(config: SweepConfig) -> SweepConfig:
    """Return the config with a number for resources.gpu, as a launch on this machine would set it.

    auto becomes 1: how many trials share a GPU is measured by the launch.
    """
    gpu = config.resources.gpu
    if gpu not in (None, "auto"):
        if config.resources.gpu_share and not torch.cuda.is_available():
            raise InputError(
                f"resources.gpu is {gpu:g}, but torch sees no GPU here: estimate where the sweep is to run, or for the "
                "CPU with --set resources.gpu=0 --set train.device=cpu"
            )
        return config
    has_gpu = torch.cuda.is_available() and config.fixed("device") != "cpu"
    if gpu == "auto" and has_gpu:
        logger.info("resources.gpu is auto: estimated with 1 per trial; a launch measures how many trials share one")
    return config.with_gpu(1 if has_gpu else 0)


def cache_bytes(data: Data) -> int:
    """Return the size of the prepared cases."""
    folders = [Path(data.folder) / name for name in data.split.names]
    return sum(path.stat().st_size for folder in folders for path in folder.glob("*") if path.is_file())


def read_gpus(text: str | None) -> tuple[int, ...]:
    """Return the numbers of --gpus, such as 1,2,4,8; () for None.

    Raises:
        InputError: for another text.
    """
    if text is None:
        return ()
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and 0 < int(part) <= 10_000 for part in parts):
        raise InputError(f"--gpus {text}: expected numbers of GPUs, such as 1,2,4,8")
    return tuple(dict.fromkeys(map(int, parts)))
