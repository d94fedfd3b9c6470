"""Parallel coordinates: each trial is a line through the values of its options, coloured by its standing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tune.report.blocks import Figure
from tune.report.chart_style import SCALE
from tune.report.sweep_data import value_text
from tune.run.results import TrialResult
from tune.spec.kinds import Choice, LogUniform
from tune.spec.parameter import Parameter

INACTIVE = "inactive"


def coordinates_figure(
    parameters: Sequence[Parameter], trials: Sequence[TrialResult], standings: Mapping[int, float]
) -> Figure:
    """Return a line per trial through the values of its options, coloured by its standing, best on top."""
    ordered = sorted(trials, key=lambda trial: standings[trial.number])
    colours = [standings[trial.number] for trial in ordered]
    dimensions = [coordinate(parameter, ordered) for parameter in parameters]
    ticks = [0, 0.25, 0.5, 0.75, 1]
    shares = {"tickvals": ticks, "ticktext": [f"{tick:.0%}" for tick in ticks]}
    dimensions.append({"label": "standing", "values": colours, "range": [0, 1], **shares})
    bar = {"title": {"text": "share of other trials beaten", "side": "right"}, "thickness": 10, "tickformat": ".0%"}
    line = {"color": colours, "colorscale": SCALE, "cmin": 0, "cmax": 1, "showscale": True, "colorbar": bar}
    spec = {
        "data": [{"type": "parcoords", "line": line, "dimensions": dimensions, "labelangle": -25}],
        "layout": {"margin": {"t": 90, "l": 70, "r": 10, "b": 24}},
    }
    title = "Recipes as lines; drag along an axis to pick those that pass there"
    summary = f"Parallel coordinates of {len(trials)} trials over {', '.join(p.name for p in parameters)}."
    return Figure("coordinates_chart", title, summary, spec, 390)


def coordinate(parameter: Parameter, trials: Sequence[TrialResult]) -> dict[str, Any]:
    """Return an axis of parallel coordinates; trials in which the option does not act are at its lower end."""
    kind, name = parameter.kind, parameter.name
    if isinstance(kind, Choice):
        ticks = [(float(index), value_text(value)) for index, value in enumerate(kind.values)]
        values = [float(kind.values.index(t.values[name])) if name in t.values else -1.0 for t in trials]
    else:
        ends = [kind.from_unit(share) for share in (0, 0.25, 0.5, 0.75, 1 - 1e-12)]
        log = isinstance(kind, LogUniform)
        low, high = (float(np.log10(v) if log else v) for v in (kind.low, kind.high))
        ticks = [
            (float(np.log10(end) if log else end), f"{end:.2g}" if isinstance(end, float) else str(end)) for end in ends
        ]
        below = low - 0.15 * (high - low)
        placed = [trial.values.get(name) for trial in trials]
        values = [below if v is None else round(float(np.log10(v) if log else v), 4) for v in placed]
    if any(name not in trial.values for trial in trials):
        ticks = [(min(values), INACTIVE), *ticks]
    ends_of_axis = [*values, *(at for at, _ in ticks)]
    return {
        "label": name,
        "values": values,
        "range": [min(ends_of_axis), max(ends_of_axis)],  # else ticks that no trial reaches are drawn over the title
        "tickvals": [at for at, _ in ticks],
        "ticktext": [text for _, text in ticks],
    }
