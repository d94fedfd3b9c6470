"""How well trials did across the search space: slices, parallel coordinates, and pairs of options.

Trials are placed by their standing, the share of the other trials that each one beats at the last epoch that both
reached, so that stopped trials are shown next to those that trained to their end (tune/analysis/standing.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

from tune.analysis.importance import Importances
from tune.analysis.standing import comparable, measure_standings
from tune.report.blocks import Block, Figure, FigureGrid, Section
from tune.report.chart_style import MARKS, axis, group_of, winner_mark
from tune.report.option_pairs import pair_figure
from tune.report.parallel_coordinates import coordinates_figure
from tune.report.sweep_data import SweepData, value_text
from tune.run.results import TrialResult
from tune.spec.kinds import Choice, LogUniform
from tune.spec.parameter import Parameter

MIN_TRIALS = 4
MAX_SLICES, MAX_COORDINATES, MAX_PAIRS = 9, 9, 3

Standings = dict[int, float]


def space_section(data: SweepData, found: Importances) -> Section | None:
    """Return the section; None with fewer than MIN_TRIALS trials that can be compared."""
    trials = [trial for trial in data.run.trials if comparable(trial)]
    if len(trials) < MIN_TRIALS:
        return None
    values = measure_standings(trials)
    standings = {trial.number: round(float(value), 3) for trial, value in zip(trials, values, strict=True)}
    mattering = [option.name for option in found.options if option.verdict == "matters"]
    chosen = ordered_options(data.run.config.space.parameters, mattering)
    slices = [slice_figure(data, parameter, trials, standings) for parameter in chosen[:MAX_SLICES]]
    blocks: list[Block] = [FigureGrid(slices)]
    if len(chosen) > 1:
        blocks.append(coordinates_figure(chosen[:MAX_COORDINATES], trials, standings))
    pairs = [pair for pair in combinations(chosen[:4], 2) if together(pair, trials) >= MIN_TRIALS][:MAX_PAIRS]
    if pairs:
        blocks.append(FigureGrid([pair_figure(*pair, trials, standings) for pair in pairs]))
    lead = (
        f"{len(trials)} trials by the values of their options, {order_text(mattering)}. Trials are placed by the share "
        "of the others that each one beats at the last epoch that both reached, so stopped ones count too."
    )
    return Section("space", "Search space", lead, blocks)


def ordered_options(parameters: Sequence[Parameter], mattering: Sequence[str]) -> list[Parameter]:
    """Return the options that matter, in that order, then the others in the order of the space."""
    by_name = {parameter.name: parameter for parameter in parameters}
    return [by_name[name] for name in dict.fromkeys([*mattering, *by_name])]


def order_text(mattering: Sequence[str]) -> str:
    """Return in which order the options are."""
    return "those that matter first" if mattering else "in the order of the space, as none is shown to matter"


def together(pair: Sequence[Parameter], trials: Sequence[TrialResult]) -> int:
    """Return the number of trials in which both options act; 0 if one only acts at a value of the other."""
    if any(one.name in other.depends_on for one in pair for other in pair):
        return 0
    return sum(all(parameter.name in trial.values for parameter in pair) for trial in trials)


def slice_figure(data: SweepData, parameter: Parameter, trials: Sequence[TrialResult], standings: Standings) -> Figure:
    """Return the standings of trials over the values of one option."""
    active = [trial for trial in trials if parameter.name in trial.values]
    winner = data.winner.number if data.winner else None
    traces: list[dict[str, Any]] = []
    for group, mark in MARKS.items():
        shown = [trial for trial in active if group_of(trial) == group and trial.number != winner]
        if shown:
            traces.append(slice_trace(mark.trace, parameter, shown, standings))
    if best := [trial for trial in active if trial.number == winner]:
        trace = slice_trace(MARKS["complete"].trace, parameter, best, standings, spread=0)
        traces.append(winner_mark(trace["x"][0], trace["y"][0], best[0].number))
    layout = {
        "xaxis": option_axis(parameter),
        "yaxis": axis("trials beaten", range=[-0.05, 1.05], tickformat=".0%"),
        "showlegend": False,
        "margin": {"l": 52, "r": 12, "t": 10, "b": 26},
    }
    summary = f"Standing of {len(active)} trials over {parameter.name}."
    return Figure(f"slice_{parameter.name}", parameter.name, summary, {"data": traces, "layout": layout}, 200)


def slice_trace(
    make: Any, parameter: Parameter, trials: Sequence[TrialResult], standings: Standings, spread: float = 0.6
) -> dict[str, Any]:
    """Return marks of trials; those of a choice are spread around their value, to tell them apart."""
    numbers = [trial.number for trial in trials]
    if isinstance(parameter.kind, Choice):
        shifts = [((number * 0.618034) % 1 - 0.5) * spread for number in numbers]
        x = [
            round(parameter.kind.values.index(t.values[parameter.name]) + shift, 3)
            for t, shift in zip(trials, shifts, strict=True)
        ]
    else:
        x = [float(f"{trial.values[parameter.name]:.4g}") for trial in trials]
    trace: dict[str, Any] = make(x, [standings[number] for number in numbers], trials=numbers)
    trace["marker"]["size"] = 5
    return trace


def option_axis(parameter: Parameter) -> dict[str, Any]:
    """Return the axis of an option's values."""
    kind = parameter.kind
    if isinstance(kind, Choice):
        return {"tickvals": list(range(len(kind.values))), "ticktext": [value_text(value) for value in kind.values]}
    return {"type": "log", "dtick": 1, "exponentformat": "power"} if isinstance(kind, LogUniform) else {"nticks": 6}
