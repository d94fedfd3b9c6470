"""The verb that describes voxtune's files and outputs to other programs."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from trainable.core.errors import InputError
from tune.cli.command import app


@app.command(epilog="Example: voxtune schema > sweep.schema.json")
def schema(
    output: Annotated[
        str | None, typer.Option(metavar="VERB", help="The schema of what VERB --json prints instead, such as status.")
    ] = None,
) -> None:
    """Print the JSON schema of a sweep's YAML, by which editors check and complete it."""
    if output is None:
        from tune.spec.schema import sweep_schema

        typer.echo(json.dumps(sweep_schema(), indent=1))
        return
    from tune.analysis.json_output.outputs import OUTPUTS, json_schema

    if output not in OUTPUTS:
        raise InputError(f"--output {output}: expected a verb that has --json: {', '.join(OUTPUTS)}")
    typer.echo(json.dumps(json_schema(output), indent=1))
