"""`voxtune trials RUN --json FILE` and `voxtune curves RUN --json FILE`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from tune.analysis.json_output.document import Document


class TrialsOutput(Document):
    """The trials as a table, one row per trial: the same as in CSV, Parquet and Python's `run.trials()`."""

    schema_: Literal["voxtune/trials/1"] = Field("voxtune/trials/1", alias="schema", description="Name and version.")
    columns: list[str] = Field(description="Names of the columns; they depend on the space and the rungs only.")
    rows: list[dict[str, Any]] = Field(description="One object per trial, with all columns; null for what it lacks.")


class CurvesOutput(Document):
    """The learning curves as a table, one row per trial and reported epoch; the same as Python's `run.curves()`."""

    schema_: Literal["voxtune/curves/1"] = Field("voxtune/curves/1", alias="schema", description="Name and version.")
    columns: list[str] = Field(description="trial, its number, and the columns of metrics.csv.")
    rows: list[dict[str, Any]] = Field(description="One object per epoch; null for what it lacks, such as scores.")
