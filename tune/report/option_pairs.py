"""Two options together: how well the trials did in each cell of their ranges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from trainable.core.options import format_value
from tune.analysis.importance import MIN_PER_VALUE
from tune.report.blocks import Figure
from tune.report.chart_style import SCALE, axis
from tune.report.sweep_data import value_text
from tune.run.results import TrialResult
from tune.spec.kinds import Choice
from tune.spec.parameter import Parameter

CELLS = 7  # into which a range of numbers is divided


def pair_figure(
    first: Parameter, second: Parameter, trials: Sequence[TrialResult], standings: Mapping[int, float]
) -> Figure:
    """Return the mean standing in each cell of two options' ranges; grey where few trials are, empty without any."""
    active = [trial for trial in trials if first.name in trial.values and second.name in trial.values]
    columns, column_labels = cells(first, active)
    rows, row_labels = cells(second, active)
    total, count = np.zeros((len(row_labels), len(column_labels))), np.zeros((len(row_labels), len(column_labels)))
    for row, column, trial in zip(rows, columns, active, strict=True):
        total[row, column] += standings[trial.number]
        count[row, column] += 1
    heat = {"x": column_labels, "y": row_labels, "texttemplate": "%{text}", "xgap": 1, "ygap": 1, "hoverongaps": False}
    hover = f"{first.name} %{{x}}<br>{second.name} %{{y}}<br>"
    enough = np.where(count >= MIN_PER_VALUE, total / np.maximum(count, 1), np.nan)
    few = np.where((count > 0) & (count < MIN_PER_VALUE), 0.0, np.nan)
    data = [
        {
            **{"type": "heatmap", "z": with_gaps(enough), "zmin": 0, "zmax": 1, "colorscale": SCALE},
            **{"colorbar": {"thickness": 10, "tickformat": ".0%"}, "text": counts_text(enough, count), **heat},
            "hovertemplate": hover + "beat %{z:.0%} of the others, %{text} trials<extra></extra>",
        },
        {
            **{"type": "heatmap", "z": with_gaps(few), "showscale": False, "text": counts_text(few, count), **heat},
            "colorscale": [[0, "var(--line)"], [1, "var(--line)"]],
            "hovertemplate": hover + "too few trials: %{text}<extra></extra>",
        },
    ]
    layout = {
        "xaxis": axis(first.name, type="category", showgrid=False),
        "yaxis": axis(second.name, type="category", showgrid=False, automargin=True),
    }
    title = f"{second.name} by {first.name}: mean standing, and number of trials (grey: below {MIN_PER_VALUE})"
    summary = f"Heat map of the mean standing of {len(active)} trials by {first.name} and {second.name}."
    return Figure(f"pair_{first.name}_{second.name}", title, summary, {"data": data, "layout": layout}, 300)


def with_gaps(cells: NDArray[np.float64]) -> list[list[float | None]]:
    """Return the values of cells in rows, None for NaN."""
    return [[None if np.isnan(value) else round(float(value), 3) for value in row] for row in cells]


def counts_text(cells: NDArray[np.float64], count: NDArray[np.float64]) -> list[list[str]]:
    """Return the number of trials in each cell as text, "" where the cell is NaN."""
    rows = zip(cells, count, strict=True)
    return [["" if np.isnan(v) else f"{int(c)}" for v, c in zip(*row, strict=True)] for row in rows]


def cells(parameter: Parameter, trials: Sequence[TrialResult]) -> tuple[list[int], list[str]]:
    """Return the cell of the option's range that each trial is in, and the cells' names in the order of the range."""
    kind, values = parameter.kind, [trial.values[parameter.name] for trial in trials]
    if isinstance(kind, Choice) or kind.count <= CELLS:
        grid = kind.grid()
        return [grid.index(value) for value in values], [value_text(value) for value in grid]
    edges = [kind.from_unit(cell / CELLS) for cell in range(CELLS)]
    names = [
        f"\N{GREATER-THAN OR EQUAL TO} {f'{edge:.2g}' if isinstance(edge, float) else format_value(edge)}"
        for edge in edges
    ]
    return [int(np.searchsorted(edges, value, "right")) - 1 for value in values], names
