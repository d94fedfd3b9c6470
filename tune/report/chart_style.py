"""How charts look: one colour, symbol and dash per way in which a trial ends, legible without colour vision.

The colours are Okabe and Ito's, in static/report.css, where each has a shade for light and for dark paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from optuna.trial import TrialState

from tune.run.results import TrialResult


@dataclass(frozen=True)
class Mark:
    """How a group of trials is drawn."""

    name: str
    colour: str
    symbol: str
    opacity: float = 0.9

    def trace(self, x: Sequence[Any], y: Sequence[Any], *, trials: Sequence[int]) -> dict[str, Any]:
        """Return marks at points; trials: whose they are."""
        marker = {"color": self.colour, "symbol": self.symbol, "size": 7, "line": {"width": 1.2, "color": self.colour}}
        return {
            **{"type": "scatter", "mode": "markers", "name": self.name, "x": list(x), "y": list(y)},
            **{"marker": marker, "opacity": self.opacity, "trials": list(trials)},
        }


MARKS = {
    "stopped": Mark("stopped early", "var(--stopped)", "circle-open", 0.6),
    "failed": Mark("failed, diverged or out of memory", "var(--failed)", "x-thin-open"),
    "running": Mark("not ended", "var(--running)", "triangle-up-open"),
    "complete": Mark("trained to the end", "var(--complete)", "circle"),
}

SCALE = [[0, "var(--scale-0)"], [0.5, "var(--scale-1)"], [1, "var(--scale-2)"]]  # of standings, from 0 to 1
# Of bars; a bar of whole trainings is plain.
PATTERNS = {"stopped": ("/", 0.25), "failed": ("x", 0.4), "running": (".", 0.3), "winner": ("-", 0.2)}


def bar_style(group: str) -> dict[str, Any]:
    """Return how the bars of a group of trials are filled. group: a key of MARKS, or "winner"."""
    colour = "var(--winner)" if group == "winner" else MARKS[group].colour
    style: dict[str, Any] = {"color": colour, "line": {"width": 1, "color": "var(--bg)"}}
    if group in PATTERNS:
        shape, solidity = PATTERNS[group]
        style["pattern"] = {
            "shape": shape,
            "solidity": solidity,
            "size": 5,
            "fillmode": "overlay",
            "fgcolor": "var(--bg)",
        }
    return style


def group_of(trial: TrialResult) -> str:
    """Return the key of MARKS for a trial."""
    if trial.finished:
        return "complete"
    if trial.state == TrialState.RUNNING:
        return "running"
    return "stopped" if trial.status == "stopped early" else "failed"


def winner_mark(x: Any, y: float, number: int) -> dict[str, Any]:
    """Return the star at the winner's point. number: of its trial."""
    star = {"symbol": "star", "size": 13, "color": "var(--winner)", "line": {"width": 1, "color": "var(--fg)"}}
    trace = {"type": "scatter", "mode": "markers", "name": "winner", "x": [x], "y": [round(y, 4)]}
    return {**trace, "marker": star, "trials": [number]}


def chart_text(text: str) -> str:
    """Return a text as it is put into a chart, where plotly.js would take <b> and the like for its own."""
    return escape(text, quote=False)


def axis(title: str, **more: Any) -> dict[str, Any]:
    """Return a plotly axis with a title."""
    return {"title": {"text": title}, **more}
