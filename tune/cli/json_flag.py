"""The option --json: a verb prints one JSON object on standard output, and everything else on standard error."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Annotated

import typer

from tune.analysis.json_output.document import Document
from tune.analysis.table_files import print_all

Json = Annotated[
    bool, typer.Option("--json", help="Print JSON, see docs/json.md; messages go to the standard error then.")
]


@contextlib.contextmanager
def messages_on_stderr(wanted: bool) -> Iterator[None]:
    """Let what is printed in this context go to standard error if `wanted`."""
    with contextlib.redirect_stdout(sys.stderr) if wanted else contextlib.nullcontext():
        yield


def print_json(output: Document) -> None:
    """Print an output."""
    print_all(output.json_text() + "\n")
