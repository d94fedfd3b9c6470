"""Asks every node of the connected Ray cluster what it has and sees, each by a process on it, in a limited time."""

from __future__ import annotations

import contextlib
import platform
import secrets
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from trainable.core.package_version import version
from tune.nodes.cells import Node, Reference
from tune.nodes.checks import examine
from tune.nodes.facts import NodeFacts, NodeWitness, code_digest, required_packages, versions_of
from tune.nodes.folders import Folder, FolderMarks, marked_folders, with_answer
from tune.nodes.report import NodeColumn, NodesReport

NODE_TIMEOUT = 120.0  # seconds in which a node is to answer: its first process unpacks the code and starts Python
CLOCK_TRIES = 5  # of which the fastest counts


def survey_nodes(
    folders: Mapping[str, Folder],
    need: Mapping[str, float] | None = None,
    *,
    address: str = "",
    timeout: float = NODE_TIMEOUT,
) -> NodesReport:
    """Return what every node of the connected cluster has, and what of that is wrong.

    Args:
        folders: that they are to see as the driver does, by role.
        need: what a trial takes, by Ray's names: a node that has less takes none. None: each takes one.
        address: of the cluster, for the report.
        timeout: seconds after which a node counts as one that does not answer.

    Raises:
        InputError: as marked_folders.
    """
    alive = [node for node in ray.nodes() if node["Alive"]]
    packages = required_packages()
    here = Reference(platform.python_version(), versions_of(packages), code_digest(), version("voxtune"))
    token = secrets.token_hex(16)
    with marked_folders(folders, token) as marks, witnesses(alive) as actors:
        answers = ask_all(alive, actors, packages, marks, timeout)
    own_id, names = ray.get_runtime_context().get_node_id(), node_names(alive)
    still_alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
    columns = []
    for node in sorted(alive, key=lambda node: (node["NodeID"] != own_id, names[node["NodeID"]])):
        number = node["NodeID"]
        found = Node(names[number], node["NodeManagerAddress"], node["Resources"], takes(node["Resources"], need))
        answer = answers[number] if number in still_alive else {"silence": "Ray has lost it while it was asked"}
        cells = examine(replace(found, **answer), here)
        columns.append(NodeColumn(names[number] + " (driver)" * (number == own_id), found.address, cells))
    return NodesReport(address, tuple(columns), notes=tuple(lost_nodes(alive)))


def takes(resources: Mapping[str, float], need: Mapping[str, float] | None) -> bool:
    """Return whether a node with these resources has room for what a trial takes."""
    return need is None or all(resources.get(kind, 0) >= count for kind, count in need.items())


@contextlib.contextmanager
def witnesses(nodes: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Start a process on each node that takes none of its resources; yield their handles by the node's id, end them."""
    witness = ray.remote(num_cpus=0, max_restarts=0, max_task_retries=0)(NodeWitness)
    actors: dict[str, Any] = {
        node["NodeID"]: witness.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote()
        for node in nodes
    }
    try:
        yield actors
    finally:
        for actor in actors.values():
            ray.kill(actor)


def ask_all(
    nodes: Sequence[Mapping[str, Any]],
    actors: Mapping[str, Any],
    packages: Sequence[str],
    marks: Mapping[str, FolderMarks],
    timeout: float,
) -> dict[str, dict[str, Any]]:
    """Return the fields of Node that each node's answer fills, by its id."""
    end = time.monotonic() + timeout
    waiting = {
        actors[node["NodeID"]].tell.remote(
            node["NodeID"],
            packages,
            marks,
            str(Path(node["RayletSocketName"]).parents[1]),
            bool(node["Resources"].get("GPU")),
        ): node["NodeID"]
        for node in nodes
    }
    answers: dict[str, dict[str, Any]] = {}
    while waiting and (left := end - time.monotonic()) > 0:
        done, _ = ray.wait(list(waiting), timeout=left)
        for reference in done:
            number = waiting.pop(reference)
            answers[number] = answer_of(number, reference, actors[number], marks)
    silence = f"no answer within {timeout:g} s"
    return answers | {number: {"silence": silence} for number in waiting.values()}


def answer_of(number: str, reference: Any, actor: Any, marks: Mapping[str, FolderMarks]) -> dict[str, Any]:
    """Return the fields of Node for a node that has answered, or whose process has failed."""
    try:
        facts: NodeFacts = ray.get(reference)
        clock = clock_of(actor)
    except ray.exceptions.RayError as error:
        lines = str(getattr(error, "cause", None) or error).strip().splitlines() or [type(error).__name__]
        return {"silence": f"its process failed ({lines[-1].strip()})"}
    folders = {role: with_answer(marks[role], found, number) for role, found in facts.folders.items()}
    return {"facts": replace(facts, folders=folders), "clock": clock}


def clock_of(actor: Any) -> tuple[float, float]:
    """Return how many seconds a node's clock is ahead of this one, and how far that may be wrong."""
    best = (0.0, float("inf"))
    for _ in range(CLOCK_TRIES):
        before = time.time()
        there = ray.get(actor.now.remote(), timeout=10)
        after = time.time()
        best = min(best, (there - (before + after) / 2, (after - before) / 2), key=lambda found: found[1])
    return best


def node_names(nodes: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return what people call the nodes, by id: the host's name, with more of it if several have that name."""
    names = {node["NodeID"]: node["NodeManagerHostname"] for node in nodes}
    for more in ("NodeName", "NodeManagerAddress", "NodeID"):
        count = Counter(names.values())
        for node in nodes:
            own = names[node["NodeID"]]
            if count[own] > 1 and node[more][:12] not in own:
                names[node["NodeID"]] = f"{own} {node[more] if more != 'NodeID' else node[more][:6]}"
    return names


def lost_nodes(alive: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a line on nodes that were in the cluster and have not come back; none if there are none."""
    here = {node["NodeManagerAddress"] for node in alive}
    lost = {
        node["NodeManagerAddress"]: f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
        for node in ray.nodes()
        if not node["Alive"] and node["NodeManagerAddress"] not in here
    }
    return [f"no longer in the cluster: {', '.join(lost.values())}"] if lost else []
