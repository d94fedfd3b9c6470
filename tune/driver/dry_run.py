"""`voxtune launch --dry_run`: all that a launch checks, and what it would run. Nothing is written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import ray

from trainable.core.console import duration
from trainable.core.counted import counted
from trainable.core.errors import InputError
from trainable.core.logger import logger
from trainable.data.preview import Preview, preview_data
from tune.driver.cluster.connection import Cluster, Slots
from tune.driver.launch.node_check import check_nodes
from tune.driver.launch.run_files import check_launch, refuse_no_validation, with_absolute_paths
from tune.driver.measurement.trial_gpus import is_measured, resolve_gpu
from tune.run.import_trials import differences
from tune.run.results import read_run
from tune.run.retention import check_disk_space
from tune.spec.short_trainings import adapted_if_short
from tune.spec.sweep_config import SweepConfig


def dry_run(
    config: SweepConfig,
    run_dir: Path,
    *,
    cluster: Cluster,
    storage: str | None = None,
    earlier: Sequence[Path] = (),
) -> None:
    """Check all that launch checks before its first trial, but for the images themselves, and print what would run.

    A storage that is a URI, and folders that several nodes are to see, are tried by files that are deleted at once. The
    arguments are those of launch.

    Raises:
        InputError: if a launch would be refused, as far as it can be told.
    """
    storage = check_launch(config, run_dir, storage)
    config = with_absolute_paths(config)
    data = preview_data(config.base_config())
    refuse_no_validation(data.split)
    for folder in earlier:
        refuse_other_scores(config, data, folder)
    logger.info("\n".join(data_lines(data)))
    config = adapted_if_short(config, len(data.split.train))
    cluster.wait()
    check_nodes(config, run_dir, storage, cluster.address)
    gpu_is_measured = is_measured(config)
    config = config.with_gpu(1) if gpu_is_measured else resolve_gpu(config)
    slots = Slots.of(config.resources)
    space = check_disk_space(config, storage or str(run_dir / "ray"), slots.count())
    logger.info("\n".join([*sweep_lines(config, slots.count(), gpu_is_measured), space]))
    logger.info(f"dry run: nothing was written; without --dry_run, {run_dir} would be made")


def refuse_other_scores(config: SweepConfig, data: Preview, earlier: Path) -> None:
    """Raise InputError if the scores of an earlier run mean something else; its cases are taken for these."""
    other = read_run(earlier).config
    config = config.with_record(data=other.record.data, split=data.split.digest())
    if changed := differences(config, other, hashes=True):
        raise InputError(f"--warm_start {earlier}: {'; '.join(changed)}: its scores cannot be compared with these")


def data_lines(data: Preview) -> list[str]:
    """Return what was found of the cases, as lines."""
    split = data.split
    names, ready = split.names, set(data.ready).intersection(split.names)
    waiting = len(names) - len(ready)
    state = f"{waiting} would be checked and preprocessed first" if waiting else "all are preprocessed"
    return [
        *data.left_out,
        f"{counted(len(names), 'case')}: {len(split.train)} to train on, {len(split.val)} to validate on, "
        f"{len(split.test)} to test on; labels: {data.labels}",
        f"cache {data.cache}: {state}",
    ]


def sweep_lines(config: SweepConfig, slots: int, gpu_is_measured: bool) -> list[str]:
    """Return what would run on the cluster, as lines.

    slots: number of trials at once. gpu_is_measured: the launch would measure how many trials share a GPU.
    """
    nodes = [node for node in ray.nodes() if node["Alive"]]
    cpus, gpus = (ray.cluster_resources().get(kind, 0) for kind in ("CPU", "GPU"))
    budget, epochs = config.budget, config.fixed("epochs")
    limits = [] if budget.time_budget is None else [f"at most {duration(budget.time_budget)}"]
    limits += [] if budget.gpu_hours is None else [f"at most {budget.gpu_hours:g} GPU hours"]
    share = "a share of a GPU that a launch would measure" if gpu_is_measured else f"{config.resources.gpu_share:g} GPU"
    return [
        f"cluster: {counted(len(nodes), 'machine')}, {cpus:g} CPU, {gpus:g} GPU",
        f"would run {counted(budget.trials, 'trial')} of up to {counted(epochs, 'epoch')}, {slots} at once with "
        f"{config.resources.cpu} CPU and {share} each{config.resources.on_nodes}"
        + "".join(f"; {limit}" for limit in limits),
    ]
