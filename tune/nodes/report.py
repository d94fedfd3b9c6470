"""What a check of all nodes has found: the table by node, and what is to be done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from tune.nodes.cells import Cell, Level
from tune.nodes.checks import CHECKS


@dataclass(frozen=True)
class NodeColumn:
    """A node in the table. name: as people call it. cells: by row."""

    name: str
    address: str
    cells: dict[str, Cell]

    @property
    def level(self) -> Level:
        """The worst that was found."""
        levels = {cell.level for cell in self.cells.values()}
        return next(level for level in (Level.WRONG, Level.WARNING, Level.OK) if level in levels or level == Level.OK)


def named(nodes: Sequence[str], most: int = 8) -> str:
    """Return the names of nodes as text, at most so many of them."""
    return ", ".join(nodes[:most]) + f" and {len(nodes) - most} more" * (len(nodes) > most)


@dataclass(frozen=True)
class Finding:
    """Something that is wrong. nodes: their names; () if it is of the cluster. text: what, and what to do."""

    level: Level
    nodes: tuple[str, ...]
    text: str

    def line(self, most: int = 8) -> str:
        """Return it with the names of the nodes, at most so many of them, before it."""
        return f"{named(self.nodes, most)}: {self.text}" if self.nodes else self.text


@dataclass(frozen=True)
class NodesReport:
    """What was found on the nodes of a cluster.

    address: of the cluster, "" for one on this machine that was started for the check. columns: the nodes, the driver's
    first. cluster: findings that are of no single node. notes: what is worth to know besides.
    """

    address: str
    columns: tuple[NodeColumn, ...]
    cluster: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = field(default=())

    @property
    def rows(self) -> list[str]:
        """The titles of the rows that apply to a node at least."""
        titles = ["answers", *CHECKS]
        return [title for title in titles if any(title in column.cells for column in self.columns)]

    def findings(self) -> list[Finding]:
        """Return all that is not ok, the worst first; what is the matter with several nodes is one finding."""
        nodes: dict[tuple[Level, str], list[str]] = {}
        for column in self.columns:
            for cell in column.cells.values():
                if cell.level != Level.OK:
                    nodes.setdefault((cell.level, cell.advice), []).append(column.name)
        found = [Finding(level, tuple(names), advice) for (level, advice), names in nodes.items()]
        return sorted([*self.cluster, *found], key=lambda finding: finding.level != Level.WRONG)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong, and nothing to be warned of."""
        return not self.findings()

    def wrong(self) -> list[Finding]:
        """Return what makes trials fail."""
        return [finding for finding in self.findings() if finding.level == Level.WRONG]

    def healthy(self) -> Sequence[NodeColumn]:
        """Return the nodes with which nothing is wrong."""
        return [column for column in self.columns if column.level == Level.OK]
