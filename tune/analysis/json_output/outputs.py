"""The model of each verb that has --json, and its JSON schema."""

from __future__ import annotations

from typing import Any

from tune.analysis.json_output.best import BestOutput
from tune.analysis.json_output.check import CheckOutput
from tune.analysis.json_output.compare import CompareOutput
from tune.analysis.json_output.confirm import ConfirmOutput
from tune.analysis.json_output.doctor import DoctorOutput
from tune.analysis.json_output.document import Document
from tune.analysis.json_output.estimate import EstimateOutput
from tune.analysis.json_output.importance import ImportanceOutput
from tune.analysis.json_output.show import ShowOutput
from tune.analysis.json_output.status import StatusOutput
from tune.analysis.json_output.tables import CurvesOutput, TrialsOutput
from tune.analysis.json_output.verify import VerifyOutput

OUTPUTS: dict[str, type[Document]] = {
    "status": StatusOutput,
    "show": ShowOutput,
    "best": BestOutput,
    "compare": CompareOutput,
    "importance": ImportanceOutput,
    "verify": VerifyOutput,
    "check": CheckOutput,
    "estimate": EstimateOutput,
    "confirm": ConfirmOutput,
    "doctor": DoctorOutput,
    "trials": TrialsOutput,
    "curves": CurvesOutput,
}


def json_schema(verb: str) -> dict[str, Any]:
    """Return the JSON schema of what a verb prints with --json; KeyError for a verb without it."""
    return OUTPUTS[verb].model_json_schema(by_alias=True, mode="serialization")
