"""Where the training time went: winner, other whole trainings, stopped and failed trials."""

from __future__ import annotations

from typing import Any

from tune.report.blocks import Figure, Section, Table
from tune.report.chart_style import MARKS, axis, bar_style, group_of
from tune.report.sweep_data import SweepData, share_text, time_text


def effort_section(data: SweepData) -> Section | None:
    """Return the section; None before anything was trained."""
    if not data.effort.trial_seconds:
        return None
    parts = effort_parts(data)
    return Section(
        "effort", "Where the time went", effort_sentence(data), [effort_figure(data, parts), effort_table(data, parts)]
    )


def effort_parts(data: SweepData) -> list[tuple[str, str, list[int], float]]:
    """Return name, key of MARKS or "winner", numbers of the trials and seconds of each part that is not empty.

    The seconds are those of GPUs, unless no trial had one.
    """
    winner = data.winner.number if data.winner else None
    names = {"winner": "winner", "complete": "others that trained to the end"}
    names |= {group: mark.name for group, mark in MARKS.items() if group != "complete"}
    parts: dict[str, tuple[list[int], float]] = {}
    for trial in data.run.own_trials:
        key = "winner" if trial.number == winner else group_of(trial)
        numbers, seconds = parts.get(key, ([], 0.0))
        parts[key] = (
            [*numbers, trial.number],
            seconds + (trial.gpu_seconds if data.effort.gpu_hours else trial.seconds),
        )
    return [(name, key, *parts[key]) for key, name in names.items() if key in parts]


def effort_sentence(data: SweepData) -> str:
    """Return the cost, what went into stopped trials and what stopping them saved."""
    effort = data.effort
    cost = f"{effort.gpu_hours:,.2f} GPU hours" if effort.gpu_hours else f"{time_text(effort.trial_seconds)} on the CPU"
    stopped = f"{share_text(effort.stopped_share)} of that time went into trials that were stopped early"
    saved = f"stopping them saved {effort.saved_epochs:,} of {effort.full_epochs:,} epochs"
    if not effort.saved_epochs:
        return f"The trials took {cost}."
    return f"The trials took {cost}; {stopped}, and {saved} ({share_text(effort.saved_share)})."


def effort_table(data: SweepData, parts: list[tuple[str, str, list[int], float]]) -> Table:
    """Return a row per part: number of trials, time and its share."""
    total, gpus = sum(part[3] for part in parts), data.effort.gpu_hours
    rows = [
        [name, str(len(numbers)), time_text(seconds), share_text(seconds / total)]
        for name, _, numbers, seconds in parts
    ]
    rows.append(["all trials", str(len(data.run.own_trials)), time_text(total), "100 %"])
    return Table(
        "Training time by how trials ended", ["trials", "number", "GPU time" if gpus else "time", "share"], rows, "lrrr"
    )


def effort_figure(data: SweepData, parts: list[tuple[str, str, list[int], float]]) -> Figure:
    """Return one bar, divided into the parts."""
    total, gpus = sum(part[3] for part in parts), data.effort.gpu_hours
    long = total > 5400
    unit, divisor = ("hours", 3600) if long else ("minutes", 60)
    traces: list[dict[str, Any]] = []
    for name, key, _, seconds in parts:
        value = round(seconds / divisor, 4)
        bar = {"type": "bar", "orientation": "h", "name": name, "x": [value], "y": [""], "marker": bar_style(key)}
        traces.append(bar | {"hovertemplate": f"%{{x:.2f}} {unit}<extra>{name}</extra>"})
    layout: dict[str, Any] = {
        "barmode": "stack",
        "xaxis": axis(f"{'GPU ' if gpus else ''}{unit}"),
        "yaxis": {"visible": False},
    }
    layout["showlegend"] = True
    shares = ", ".join(f"{name} {share_text(seconds / total)}" for name, _, _, seconds in parts)
    height = 120 + 22 * len(parts)  # the legend has a line per part on a narrow screen
    summary = f"A bar divided into: {shares}."
    return Figure("effort_chart", "Training time", summary, {"data": traces, "layout": layout}, height)
