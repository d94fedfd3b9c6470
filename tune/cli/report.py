"""The verb that writes a report."""

from __future__ import annotations

import shlex
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from trainable.core.logger import logger
from tune.cli.command import app


class Images(StrEnum):
    """Which predictions a report shows."""

    MAKE = "make"
    KEPT = "kept"
    NONE = "none"


@app.command(epilog="Example: voxtune report RUN -o report.html")
def report(
    folders: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...",
            help="Folder of a sweep, of several to compare them, of a retraining (RUN/retrain/NAME), or of a "
            "confirmation (RUN/confirm).",
        ),
    ],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="By default report.html in the first folder.")
    ] = None,
    images: Annotated[
        Images,
        typer.Option(
            help="Images of the worst, median and best case: make predicts them if need be, kept shows what an earlier "
            "report has predicted, none leaves images out."
        ),
    ] = Images.MAKE,
    names: Annotated[
        bool, typer.Option("--names", help="Show the names of cases, machines and folders, which are left out.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing unless something is wrong.")] = False,
) -> None:
    """Write what a sweep has found as one HTML file, to open in any browser without a network; also while it runs."""
    from tune.report.report import write_report

    path = write_report(folders, output, images=images.value, anonymous=not names, quiet=quiet)
    if not quiet:
        size = path.stat().st_size / 1e6
        logger.info(f"wrote {path} ({size:.1f} MB, one file): open it in a browser: {shlex.quote(str(path.resolve()))}")
