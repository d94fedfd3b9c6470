"""`voxtune doctor --json`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tune.analysis.json_output.document import Document
from tune.nodes.report import NodesReport

LevelName = Literal["ok", "warning", "wrong"]
LEVEL = "ok; warning: a sweep runs all the same; wrong: a launch is refused."


class NodeCheckItem(Document):
    """What a check has found on a node."""

    name: str = Field(description="What is checked, as the table's row.")
    level: LevelName = Field(description=LEVEL)
    value: str = Field(description="What was found, as the table shows it.")
    advice: str = Field(description='What is the matter and what to do, a sentence; "" if it is ok.')


class NodeItem(Document):
    """A node of the cluster."""

    name: str = Field(description="Host name, with more of it if several nodes have it; the driver's ends in (driver).")
    address: str = Field(description="IP address.")
    level: LevelName = Field(description="The worst of its checks.")
    checks: list[NodeCheckItem] = Field(description="Those that apply to it.")


class ClusterFindingItem(Document):
    """Something that is wrong with the cluster as a whole."""

    level: LevelName = Field(description=LEVEL)
    advice: str = Field(description="What is the matter and what to do, a sentence.")


class DoctorOutput(Document):
    """A check of all nodes of a Ray cluster."""

    schema_: Literal["voxtune/doctor/1"] = Field("voxtune/doctor/1", alias="schema", description="Name and version.")
    address: str = Field(description='Address of the cluster; "" for this machine.')
    ok: bool = Field(description="Whether all is well; the exit code is 0 then, else 1.")
    nodes: list[NodeItem] = Field(description="All nodes, the driver's first.")
    cluster: list[ClusterFindingItem] = Field(description="What is wrong with no single node.")
    notes: list[str] = Field(description="What is worth to know besides, such as nodes that are gone.")


def doctor_output(report: NodesReport) -> DoctorOutput:
    """Return what was found on the nodes."""
    return DoctorOutput(
        address=report.address,
        ok=report.ok,
        nodes=[
            NodeItem(
                name=column.name,
                address=column.address,
                level=column.level.value,
                checks=[
                    NodeCheckItem(name=title, level=cell.level.value, value=cell.text, advice=cell.advice)
                    for title, cell in column.cells.items()
                ],
            )
            for column in report.columns
        ],
        cluster=[ClusterFindingItem(level=finding.level.value, advice=finding.text) for finding in report.cluster],
        notes=list(report.notes),
    )
