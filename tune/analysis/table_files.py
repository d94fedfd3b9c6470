"""Writes a table of plain values as CSV, JSON or Parquet, to a file or to standard output."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from trainable.core.errors import InputError
from trainable.core.files import atomic_write, atomic_write_text, refuse_unusable, unwritable_as_input_error

Row = dict[str, Any]
Format = Literal["csv", "json", "parquet"]
STDOUT = Path("-")


def write_table(path: Path, form: Format, rows: Sequence[Row], columns: Sequence[str], schema: str) -> None:
    """Write a table.

    Args:
        path: of the file, which is replaced, or STDOUT.
        form: its format.
        rows: what a row lacks is empty, in JSON and Parquet null.
        columns: in their order.
        schema: name and version of the table, for JSON.

    Raises:
        InputError: Parquet is to go to a terminal, or the file cannot be written.
    """
    if path == STDOUT:
        write_to(path, form, rows, columns, schema)
        return
    refuse_unusable(path, f"--{form}", f"table.{form}")
    with unwritable_as_input_error(path, f"--{form}"):
        write_to(path, form, rows, columns, schema)


def write_to(path: Path, form: Format, rows: Sequence[Row], columns: Sequence[str], schema: str) -> None:
    """Write a table, as write_table does, except that a file that cannot be written raises OSError."""
    if form == "parquet":
        write_parquet(path, rows, columns, schema)
        return
    text = csv_text(rows, columns) if form == "csv" else json_text(rows, columns, schema)
    if path == STDOUT:
        print_all(text)
    else:
        atomic_write_text(path, text, fsync=False)


def csv_text(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """Return a table as CSV: lists as JSON, None and NaN empty, true and false in lower case."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([csv_value(row.get(name)) for name in columns] for row in rows)
    return text.getvalue()


def csv_value(value: Any) -> Any:
    """Return a value as it stands in a CSV."""
    if isinstance(value, bool | list):
        return json.dumps(value)
    return "" if value is None or is_nan(value) else value


def json_text(rows: Sequence[Row], columns: Sequence[str], schema: str) -> str:
    """Return a table as JSON: an object with the schema and the rows, one per line; NaN is null."""
    lines = [
        json.dumps({name: None if is_nan(row.get(name)) else row.get(name) for name in columns}, allow_nan=False)
        for row in rows
    ]
    body = ",\n".join(lines)
    return f'{{"schema": {json.dumps(schema)}, "columns": {json.dumps(list(columns))}, "rows": [\n{body}\n]}}\n'


def is_nan(value: Any) -> bool:
    """Return whether a value is a number that JSON does not have."""
    return isinstance(value, float) and not math.isfinite(value)


def write_parquet(path: Path, rows: Sequence[Row], columns: Sequence[str], schema: str) -> None:
    """Write a table as Parquet; the schema's name is in its metadata."""
    from pyarrow import Table, array  # here: it takes a moment to import
    from pyarrow.parquet import write_table as write_arrow

    if path == STDOUT and sys.stdout.isatty():
        raise InputError("--parquet - would write binary data to the terminal; give a file, or pipe it on")
    table = Table.from_arrays([array([row.get(name) for row in rows]) for name in columns], names=list(columns))
    table = table.replace_schema_metadata({"voxtune": schema})
    if path == STDOUT:
        write_arrow(table, sys.stdout.buffer)
    else:
        atomic_write(path, lambda file: write_arrow(table, file), fsync=False)


def print_all(text: str) -> None:
    """Print a text; a reader that has seen enough, such as `head`, is no error."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left is flushed at the exit
