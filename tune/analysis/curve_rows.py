"""The learning curves of a run as a table: one row per trial and reported epoch."""

from __future__ import annotations

from trainable.training.epoch_result import row_columns
from trainable.training.training_log import read_rows
from tune.analysis.table_files import Row
from tune.run.results import Run

INTEGERS = {"epoch", "best_epoch", "steps"}


def curve_columns(rows: list[Row]) -> list[str]:
    """Return the columns: trial, those of metrics.csv, and any others that the rows have."""
    return list(dict.fromkeys(["trial", *row_columns(), *(name for row in rows for name in row)]))


def curve_rows(run: Run) -> list[Row]:
    """Return the reported epochs of all trials: `trial`, the trial's number, and the columns of its metrics.csv.

    What an epoch lacks, such as the scores of one that was not validated, is None.
    """
    return [
        {"trial": trial.number, **{name: parse(name, text) for name, text in row.items()}}
        for trial in run.trials
        for row in read_rows(run.dir.trial(trial.number).metrics)
    ]


def parse(name: str, text: str) -> float | int | str | None:
    """Return a value of metrics.csv with its type; None for an empty one, except end_reason, which is text."""
    if name == "end_reason":
        return text
    if not text:
        return None
    return int(float(text)) if name in INTEGERS and float(text).is_integer() else float(text)
