"""The verb that writes a model, or a sweep, for other tools."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from trainable.core.errors import InputError
from trainable.core.logger import logger
from tune.cli.command import app


class Store(StrEnum):
    """Where a sweep can be copied to."""

    MLFLOW = "mlflow"
    WANDB = "wandb"


@app.command(epilog="Example: voxtune export RUN/retrain/final --bundle DIR")
def export(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="DIR", help="For --bundle RUN/retrain/NAME, or the folder of a training; for --to RUN, of a sweep."
        ),
    ],
    bundle: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write a bundle of MONAI: a new folder, or an earlier bundle.")
    ] = None,
    to: Annotated[
        Store | None,
        typer.Option(
            help="Copy a sweep with all its trials to a store of this tool, such as: voxtune export RUN --to mlflow "
            "--uri sqlite:///mlflow.db"
        ),
    ] = None,
    uri: Annotated[
        str | None,
        typer.Option(
            metavar="URI",
            help="With --to: the store, a folder or a URI of MLflow such as sqlite:///mlflow.db; by default that of "
            "the tool: ./mlflow.db or $MLFLOW_TRACKING_URI, ./wandb.",
        ),
    ] = None,
    project: Annotated[str, typer.Option(metavar="NAME", help="With --to: experiment or project.")] = "voxtune",
    authors: Annotated[
        str, typer.Option(metavar="TEXT", help="With --bundle: authors of the model, for its card.")
    ] = "",
    with_case_names: Annotated[
        bool,
        typer.Option(
            "--with_case_names", help="With --bundle: write the names of the scored cases too; else only hashes."
        ),
    ] = False,
) -> None:
    """Write a model as a bundle that MONAI runs without voxtune; or copy a sweep to MLflow or Weights & Biases."""
    if (bundle is None) == (to is None):
        raise InputError("expected one of --bundle DIR, of a model, and --to mlflow or --to wandb, of a sweep")
    if bundle is not None:
        from tune.model_bundle import export_model

        export_model(source, bundle, authors=authors, with_case_names=with_case_names)
        return
    from tune.run.results import read_run

    run = read_run(source.resolve())
    if to == Store.MLFLOW:
        from tune.viewers.mlflow_store import export_to_mlflow

        logger.info(export_to_mlflow(run, uri, project))
    else:
        from tune.viewers.wandb_store import export_to_wandb

        if uri is not None and "://" in uri:
            raise InputError(f"--uri {uri}: expected a folder, in which wandb/ is made; `wandb sync` uploads it")
        logger.info(export_to_wandb(run, Path(uri or "."), project))
