"""What a check of a node gets, and the cell of the table that it fills."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from tune.nodes.facts import NodeFacts


class Level(StrEnum):
    """How bad it is."""

    OK = "ok"
    WARNING = "warning"  # a sweep runs all the same, perhaps badly
    WRONG = "wrong"  # trials on this node fail, or are not comparable with the others


@dataclass(frozen=True)
class Cell:
    """What a check has found on a node: a few words; if it is not ok, what is the matter and what to do, a sentence."""

    text: str
    level: Level = Level.OK
    advice: str = ""


@dataclass(frozen=True)
class Reference:
    """What the driver's own process has: see NodeFacts. packages: those that a trial needs."""

    python: str
    versions: Mapping[str, str]
    code: str
    voxtune: str


@dataclass(frozen=True)
class Node:
    """A node of the cluster.

    name: as people call it. address: its IP address. resources: by Ray's names. takes_trials: whether a trial fits on
    it. facts: None if it did not answer. silence: why it did not, in words. clock: seconds that its clock is ahead of
    the driver's, and how far that may be wrong.
    """

    name: str
    address: str
    resources: Mapping[str, float]
    takes_trials: bool = True
    facts: NodeFacts | None = None
    silence: str = ""
    clock: tuple[float, float] = (0.0, 0.0)


Check = Callable[[Node, NodeFacts, Reference], Cell | None]
