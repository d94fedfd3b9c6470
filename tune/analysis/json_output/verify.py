"""`voxtune verify RUN --json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from tune.analysis.json_output.document import Document


class CheckItem(Document):
    """One check."""

    name: str = Field(description="What is checked.")
    findings: list[str] = Field(description="What is wrong, a sentence each; empty if nothing is.")


class VerifyOutput(Document):
    """What an audit of a sweep or a bundle has found."""

    schema_: Literal["voxtune/verify/1"] = Field("voxtune/verify/1", alias="schema", description="Name and version.")
    path: str = Field(description="Folder of the sweep or bundle.")
    ok: bool = Field(description="Whether nothing is wrong; the exit code is 0 then, else 1.")
    checks: list[CheckItem] = Field(description="All checks.")


def verify_output(path: Path, checks: Mapping[str, Sequence[str]]) -> VerifyOutput:
    """Return the findings of each check, by its name."""
    items = [CheckItem(name=name, findings=list(findings)) for name, findings in checks.items()]
    return VerifyOutput(path=str(path), ok=not any(checks.values()), checks=items)
