"""The check of all nodes that comes before a sweep, a confirmation or an ensemble on a cluster of several."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import ray

from trainable.core.counted import counted
from trainable.core.errors import InputError
from trainable.core.logger import logger
from trainable.core.storage import Uri, is_uri, place_of_data
from trainable.data.cache import cache_folder, can_be_written, sibling_cache
from trainable.data.prepare import cases_on_disk
from tune.driver.cluster import ray_compat
from tune.driver.cluster.connection import Cluster, Slots
from tune.driver.cluster.node_survey import survey_nodes
from tune.driver.launch.run_files import with_absolute_paths
from tune.driver.measurement.trial_gpus import refuse_unknown_gpu, trial_need
from tune.nodes.cells import Cell, Level
from tune.nodes.folder_checks import OWN_CACHE
from tune.nodes.folders import Folder, Use
from tune.nodes.report import Finding, NodesReport, named
from tune.run.results import Run
from tune.spec.sweep_config import SweepConfig

OPEN_CLUSTER = (
    "this cluster takes commands from everyone who reaches its ports, as it requires no token: write one with `ray "
    "get-auth-token --generate`, copy ~/.ray/auth_token to all nodes, and start Ray there with RAY_AUTH_MODE=token"
)


def check_nodes(config: SweepConfig, run_dir: Path, storage: str | None, address: str | None) -> None:
    """Check every node of the connected cluster if it has several; print what to be warned of.

    Args:
        config: of the sweep, with absolute paths.
        storage: of the checkpoints; None for RUN.
        address: of the cluster, for the hint.

    Raises:
        InputError: naming the nodes and what is wrong, if trials on them would fail or could not be compared.
    """
    if sum(node["Alive"] for node in ray.nodes()) < 2:
        return
    report = survey_nodes(sweep_folders(config, run_dir, storage), trial_need(config), address=address or "")
    for finding in report.findings():
        if finding.level == Level.WARNING:
            logger.warning(finding.line())
    if wrong := report.wrong():
        where = "" if address is None else f" --address {address}"
        raise InputError(
            "\n".join(
                [
                    *(finding.line() for finding in wrong),
                    f"nothing was started; repair these nodes or take them out of the cluster, then look again with "
                    f"`voxtune doctor ...{where}`",
                ]
            )
        )
    logger.info("\n".join([well_line(report), *own_cache_lines(report)]))


def check_nodes_for(run: Run, cluster: Cluster) -> None:
    """Do what check_nodes does for trainings in the folder of a run; the arguments are the run and the cluster."""
    check_nodes(with_absolute_paths(run.config), run.folder.resolve(), None, cluster.address)


def examine_cluster(
    config: SweepConfig | None, run_dir: Path | None, storage: str | None, address: str | None, *, fits: bool
) -> NodesReport:
    """Return what was found on all nodes of the connected cluster, and on the cluster as a whole.

    Args:
        config, run_dir, storage: of a sweep whose folders are looked for; None for none.
        address: of the cluster; None for one on this machine.
        fits: also check that a trial of the config fits on a node.

    Raises:
        InputError: as survey_nodes and sweep_folders.
    """
    config = config and with_absolute_paths(config)
    need = trial_need(config) if fits and config is not None else None
    with ray_compat.stranger(address) as is_let_in:
        report = survey_nodes(sweep_folders(config, run_dir, storage), need, address=address or "")
        findings = [Finding(Level.WARNING, (), OPEN_CLUSTER)] if is_let_in() else []
    notes = [*report.notes, *own_cache_lines(report)]
    if fits and config is not None:
        try:
            refuse_unknown_gpu(config.resources.gpu, config.fixed("device"))
            notes.append(fits_line(config.with_gpu(trial_need(config)["GPU"])))
        except InputError as error:
            findings.append(Finding(Level.WRONG, (), str(error)))
    return replace(report, cluster=tuple(findings), notes=tuple(notes))


def fits_line(config: SweepConfig) -> str:
    """Return how many trials fit on the connected cluster.

    Raises:
        InputError: none does.
    """
    slots = Slots.of(config.resources)
    share = f"{config.resources.cpu} CPU and {config.resources.gpu_share:g} GPU{config.resources.on_nodes}"
    added = ", on the nodes that are there; the autoscaler is asked for more" * slots.autoscales
    return f"{counted(slots.fitting(), 'trial')} at once if nothing else runs, each with {share}{added}"


def well_line(report: NodesReport) -> str:
    """Return that the nodes can be used, in a line."""
    return f"{len(report.columns)} nodes checked: {'all are well' if report.ok else 'all can be used'}"


def own_cache_lines(report: NodesReport) -> list[str]:
    """Return a line on the nodes whose cache is not the driver's; none if there are none."""
    names = [column.name for column in report.columns if column.cells.get("cache") == Cell(OWN_CACHE)]
    if not names:
        return []
    return [f"the cache is not shared: {named(names)} will have its own, and prepare there what it lacks"]


def sweep_folders(config: SweepConfig | None, run_dir: Path | None, storage: str | None) -> dict[str, Folder]:
    """Return the folders of a sweep that its nodes must see, by role.

    Args:
        config: of the sweep; if there is none, or it names no cases, there is no folder of them and no cache.
        run_dir: None if it is not known yet.
        storage: of the checkpoints; None for RUN.

    Raises:
        InputError: as place_of.
    """
    folders = {}
    if config is not None and (data := config.fixed("data_dir")) is not None:
        folders["DATA"] = Folder(place_of_data(data), Use.NOBODY)
        cache = place_of(config)
        read_only = cache.is_dir() and not can_be_written(cache)  # a whole cache may be on such a mount
        folders["cache"] = Folder(cache, Use.NOBODY if read_only else Use.CACHE)
    if run_dir is not None:
        folders["RUN"] = Folder(run_dir, Use.BOTH)
    if storage is not None and not is_uri(storage):
        folders["storage"] = Folder(Path(storage), Use.BOTH)
    return folders


def place_of(config: SweepConfig) -> Path:
    """Return the folder of the cache that a launch or resume with this config takes.

    Raises:
        InputError: as cases_on_disk.
    """
    place, data = config.record.cache_dir or config.fixed("cache_dir"), place_of_data(str(config.fixed("data_dir")))
    if isinstance(data, Uri):
        return cache_folder(data, place and Path(place))
    sibling = sibling_cache(data)
    if place is None and sibling.is_dir() and not can_be_written(sibling):  # it counts if it has all cases
        return cases_on_disk(config.base_config())[2]
    return cache_folder(data, place and Path(place))
