"""How many GPUs a trial takes: as configured, by default, or measured."""

from __future__ import annotations

from typing import Any

import ray

from trainable.core.errors import InputError
from trainable.core.logger import logger
from trainable.core.options import to_dict
from tune.driver.cluster.autoscaler_compat import autoscales
from tune.driver.cluster.connection import Slots
from tune.planning.recipe_costs import largest_recipe
from tune.spec.space import ConfigErrors
from tune.spec.sweep_config import SweepConfig, conflicts, undivided_steps


def resolve_gpu(config: SweepConfig) -> SweepConfig:
    """Return the config with a number for `resources.gpu`, see choose_gpu; print it if that was auto or not given.

    Raises:
        InputError: if no trial with a whole GPU fits on the cluster, torch sees no GPU where auto is measured, or the
            steps of the recipes cannot be divided among a trial's GPUs.
        ConfigErrors: if the config does not fit the number.
        RuntimeError: from Ray, if a trial fails to run for another reason than memory.
    """
    given = config.resources.gpu
    refuse_unknown_gpu(given, config.fixed("device"))
    gpus, why = measure_auto(config) if is_measured(config) else choose_gpu(config)
    if given in ("auto", None):
        logger.info(f"resources.gpu: {'not given, so it' if given is None else 'auto'} is {gpus:g} ({why})")
        config = config.with_gpu(gpus)
        if problems := list(conflicts(config)):
            raise ConfigErrors(*problems)
    elif gpus == 0 and cluster_gpus() and config.fixed("device") != "cpu":
        logger.info(f"resources.gpu is 0: trials train on the CPU; {why}, see --set resources.gpu=1")
    if undivided := undivided_steps(config):  # of a run that an older version has begun
        raise InputError(undivided)
    return config


def refuse_what_never_fits(config: SweepConfig) -> None:
    """Raise InputError if no trial can ever run on the connected cluster, or it is not known whether on GPUs."""
    refuse_unknown_gpu(config.resources.gpu, config.fixed("device"))
    Slots.of(config.with_gpu(trial_need(config)["GPU"]).resources)


def refuse_unknown_gpu(gpu: float | str | None, device: str = "auto") -> None:
    """Raise InputError if trials may take GPUs of nodes that an autoscaler is still to add, and nothing says how many.

    gpu: resources.gpu. device: train.device.
    """
    if gpu in ("auto", None) and device != "cpu" and not cluster_gpus() and autoscales():
        given = "is auto" if gpu == "auto" else "is not given"
        raise InputError(
            f"resources.gpu {given}, and no node that this autoscaling cluster has now has a GPU; say what a trial "
            "takes: --set resources.gpu=1, or 0 for the CPU"
        )


def trial_need(config: SweepConfig) -> dict[str, float]:
    """Return what a trial takes on the connected cluster, by Ray's names; a whole GPU if a share is to be measured."""
    return {"CPU": float(config.resources.cpu), "GPU": float(choose_gpu(config)[0])}


def choose_gpu(config: SweepConfig) -> tuple[float, str]:
    """Return how many GPUs of the connected cluster a trial takes, and why.

    A number stays. If it is not given, it is 1 if the cluster has a GPU and train.device is not cpu, else 0. Auto is
    0 if the cluster has no GPU; else 1 here, and in a launch the share that measure_auto finds.
    """
    gpu, count = config.resources.gpu, cluster_gpus()
    has = f"the cluster has {count:g} GPU{'s' * (count != 1)}" if count else "the cluster has no GPU"
    if gpu not in ("auto", None):
        return float(gpu), has
    if gpu is None and config.fixed("device") == "cpu":
        return 0.0, "train.device is cpu"
    return min(count, 1.0), has


def is_measured(config: SweepConfig) -> bool:
    """Return whether a launch measures how many trials share a GPU."""
    return config.resources.gpu == "auto" and cluster_gpus() > 0


def cluster_gpus() -> float:
    """Return the number of GPUs of the connected cluster."""
    return float(ray.cluster_resources().get("GPU", 0))


def measure_auto(config: SweepConfig) -> tuple[float, str]:
    """Measure how many trials are to share a GPU, see best_count: on one GPU of the cluster, as soon as one is free.

    The recipe is the one of the space that needs most memory.

    Returns:
        The share of a GPU per trial, and the rates in words.

    Raises: as resolve_gpu.
    """
    from tune.driver.measurement.gpu_sharing import best_count, measure_sharing

    cpu = config.resources.cpu
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU")]
    Slots.of(config.with_gpu(1).resources)
    logger.info("resources.gpu is auto: measuring how many trials are to share a GPU, as soon as one is free")
    max_processes = min(int(node.get("CPU", 0) / node["GPU"]) // cpu for node in nodes)
    recipe = {**to_dict(largest_recipe(config)), "device": "cuda"}
    options: dict[str, Any] = {"num_gpus": 1, "num_cpus": cpu, "max_retries": 0}
    try:
        rates = ray.get(ray.remote(**options)(measure_sharing).remote(recipe, max_processes))
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, InputError):
            raise InputError(str(error.cause)) from None
        raise
    reason = ", ".join(f"{count}: {rate:.1f} patches/s" for count, rate in rates.items()) or "none fits"
    return 1 / best_count(rates), reason
