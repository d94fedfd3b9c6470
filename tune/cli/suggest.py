"""The verb `suggest`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trainable.core.logger import logger
from tune.cli.command import RunFolder, app
from tune.run.results import read_run
from tune.run.suggestions import suggest_recipe


@app.command(epilog="Example: voxtune suggest RUN recipe.yaml")
def suggest(
    run: RunFolder,
    recipe: Annotated[
        Path, typer.Argument(metavar="RECIPE", help="File of options, or the name of a shipped recipe: nnunet.")
    ],
) -> None:
    """Have a sweep that runs, or will be resumed, try a recipe next; it counts as one of study.trials."""
    logger.info(suggest_recipe(read_run(run.resolve()), recipe))
