"""Whether a sweep is worth going on with: the winner at an edge, how long it has led, what more trials would bring."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trainable.core.counted import counted
from tune.analysis.option_range import Edge, find_edge, value_label
from tune.run.expected_gain import MORE_TRIALS, ExpectedGain, expected_gain, trials_since_best
from tune.run.results import Run

LONG = 8  # trials with the same winner, from which on that is said


@dataclass(frozen=True)
class Outlook:
    """What a run says of going on.

    edges: of the options at an end of whose range the winner is, by name. since: as trials_since_best. gain: None while
    it is not known.
    """

    edges: dict[str, Edge]
    since: int
    gain: ExpectedGain | None


def outlook(run: Run) -> Outlook:
    """Return what a run says of going on."""
    return Outlook(winner_edges(run), trials_since_best(run), expected_gain(run))


def winner_edges(run: Run) -> dict[str, Edge]:
    """Return the options at an end of whose range the winner is, if they allow more; {} before one has finished."""
    if not run.ranking or not run.ranking[0].finished:
        return {}
    winner = run.ranking[0]
    constants, found = run.config.space.constants, dict[str, Edge | None]()
    for parameter in run.config.space.parameters:
        if branch := parameter.branch(constants | winner.values):
            found[parameter.name] = find_edge(parameter, branch, winner.values[parameter.name], [], np.empty(0))
    return {name: edge for name, edge in found.items() if edge is not None}


def outlook_lines(run: Run) -> list[str]:
    """Return what a run says of going on, as up to two sentences."""
    found, lines = outlook(run), list[str]()
    if found.edges:
        ends = ", ".join(
            f"the {edge.side} end of {name} ({value_label(edge.value)})" for name, edge in found.edges.items()
        )
        lines.append(
            f"the winner is at {ends}: better values may lie beyond; `voxtune importance` says how to widen it"
        )
    parts = [f"the winner has been the same for the last {counted(found.since, 'trial')}"] * (found.since >= LONG)
    if found.gain is not None:
        parts.append(f"another {MORE_TRIALS} trials are expected to bring {found.gain.text()}")
    return lines + ["; ".join(parts)] * bool(parts)
