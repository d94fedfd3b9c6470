"""The verb that checks the nodes of a Ray cluster: doctor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trainable.core.errors import InputError
from trainable.core.logger import logger
from trainable.core.storage import is_uri
from tune.analysis.json_output.doctor import doctor_output
from tune.cli.command import Address, CacheDir, app
from tune.cli.completion import complete_space
from tune.cli.json_flag import Json, messages_on_stderr, print_json
from tune.cli.plan import data_overrides, require_data
from tune.run.results import ensure_run
from tune.spec.sweep_config import SweepConfig
from tune.spec.sweep_file import load_sweep_config


@app.command(epilog="Example: voxtune doctor brats --data DIR --out RUN --address HOST:6379")
def doctor(
    sweep: Annotated[
        str | None,
        typer.Argument(
            metavar="SWEEP",
            help="YAML of the sweep to come, or folder of one: its folders and resources are checked too.",
            autocompletion=complete_space,
        ),
    ] = None,
    data: Annotated[str | None, typer.Option(metavar="DIR", help="Folder or URI of the cases.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="RUN", help="Folder that the sweep is to have.")] = None,
    cache_dir: CacheDir = None,
    storage: Annotated[str | None, typer.Option(help="Where Ray is to keep checkpoints, as for launch.")] = None,
    address: Address = None,
    json_: Json = False,
) -> None:
    """Check every node of a Ray cluster: versions, GPUs, shared folders, locks, disks, limits, clocks.

    A launch on several nodes makes the same check. Exit code 1 if something is wrong or to be warned of.
    """
    if data is not None:
        require_data(data)
    config, run_dir, storage = what_to_check(sweep, data, out, cache_dir, storage)
    with messages_on_stderr(json_):
        logger.info("starting Ray" if address is None else f"connecting to Ray at {address}")
        from tune.driver.cluster.connection import Cluster  # after the YAML is checked: this imports Ray
        from tune.driver.launch.node_check import examine_cluster

        with Cluster(address) as cluster:
            cluster.wait()
            report = examine_cluster(config, run_dir, storage, address, fits=sweep is not None)
    if json_:
        print_json(doctor_output(report))
    else:
        from tune.terminal.node_table import print_nodes

        print_nodes(report)
    if not report.ok:
        raise typer.Exit(1)


def what_to_check(
    sweep: str | None, data: str | None, out: Path | None, cache_dir: Path | None, storage: str | None
) -> tuple[SweepConfig | None, Path | None, str | None]:
    """Return the config of the sweep that the arguments name, None without one, its folder and its storage.

    Raises:
        InputError: the YAML is wrong, or arguments contradict each other.
    """
    if storage is not None and not is_uri(storage):
        storage = str(Path(storage).resolve())
    overrides = data_overrides(data, cache_dir)
    folder = None if sweep is None else Path(sweep)
    if folder is not None and folder.is_dir():
        if out is not None or storage is not None:
            raise InputError(f"{folder} is a folder of a sweep, which names its own; leave out --out and --storage")
        config = load_sweep_config(ensure_run(folder.resolve()).config, overrides)
        if overrides:  # the cache is another one then
            config = config.with_record(cache_dir=None)
        return config, folder.resolve(), config.record.storage
    config = load_sweep_config(sweep or "brats", overrides)  # any, for the places of DATA and cache
    return config if sweep or data else None, out and out.resolve(), storage
