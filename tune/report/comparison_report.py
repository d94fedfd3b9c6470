"""The report that compares several sweeps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from trainable.core.brats import REGIONS
from trainable.core.counted import counted
from tune.analysis.importance import OptionImportance
from tune.analysis.option_range import setting_text
from tune.analysis.run_comparison import RunComparison, best_so_far, compare_runs
from tune.report.blocks import Block, Facts, Figure, Note, Section, Table
from tune.report.cases_section import privacy_text
from tune.report.chart_style import axis, chart_text
from tune.report.overview import confirmed_text, run_name
from tune.report.page import Page
from tune.report.sweep_data import DASH, SweepData, read_sweep, score_text, share_text, time_text, value_text
from tune.run.results import Run

LINES = (
    ("var(--accent)", "solid"),
    ("var(--stopped)", "dash"),
    ("var(--complete)", "dot"),
    ("var(--winner)", "dashdot"),
)


def comparison_page(runs: Sequence[Run], *, anonymous: bool) -> Page:
    """Return the report that compares runs. anonymous: names no case, machine or folder."""
    found, sweeps = compare_runs(runs), [read_sweep(run, anonymous=anonymous) for run in runs]
    names = sweep_names(sweeps)
    sections = [
        result_section(found, sweeps, names),
        protocol_section(found, sweeps, names),
        progress_section(found, names),
        importance_section(found, names),
        recipes_section(found, names),
    ]
    states = [f"{data.state}; {counted(len(data.run.own_trials), 'trial')}" for data in sweeps]
    return Page(
        title=" and ".join(names),
        subtitle=f"Comparison of {len(runs)} sweeps",
        facts=Facts(list(zip(names, states, strict=True))),
        privacy=privacy_text([], anonymous=anonymous),
        sections=[section for section in sections if section is not None],
        trials={},
    )


def sweep_names(sweeps: Sequence[SweepData]) -> list[str]:
    """Return the names of the runs' folders, numbered if some are alike."""
    names = [run_name(data.run.folder) for data in sweeps]
    return [f"{name} ({place})" if names.count(name) > 1 else name for place, name in enumerate(names, 1)]


def result_section(found: RunComparison, sweeps: Sequence[SweepData], names: Sequence[str]) -> Section:
    """Return what each sweep has found and cost, a column each."""
    cells: dict[str, Callable[[SweepData], str]] = {
        "winner": lambda data: f"trial {data.winner.number}" if data.winner else "none yet",
        "score of the winner": lambda data: score_text(data.winner.score if data.winner else None),
    }
    for region in REGIONS:
        cells[f"Dice {region} of the winner"] = region_cell(region)
    cells |= {
        "score of the default recipe": lambda data: score_text(
            data.run.default_trial.score if data.run.default_trial else None
        ),
        "confirmed": confirmed_text,
        "trained to the end": lambda data: str(sum(trial.finished for trial in data.run.own_trials)),
        "GPU hours": lambda data: f"{data.effort.gpu_hours:,.2f}" if data.effort.gpu_hours else "0, on the CPU",
        "training time": lambda data: time_text(data.effort.trial_seconds),
        "saved by early stopping": lambda data: share_text(data.effort.saved_share),
    }
    rows = [[title, *(cell(data) or DASH for data in sweeps)] for title, cell in cells.items()]
    table = Table("Validation cases, one training per trial", ["sweep", *names], rows, "l" * (1 + len(names)))
    return Section("result", "Result", result_sentence(found, sweeps, names), [table])


def region_cell(region: str) -> Callable[[SweepData], str]:
    """Return the function that gives the winner's Dice of a region."""
    return lambda data: score_text(data.winner.dice.get(region) if data.winner else None)


def result_sentence(found: RunComparison, sweeps: Sequence[SweepData], names: Sequence[str]) -> str:
    """Return which sweep's winner scores highest, if scores can be compared."""
    if not found.comparable:
        return "The scores of these sweeps cannot be compared: see what differs in what they mean."
    scored = [(data.winner.score or 0.0, name) for data, name in zip(sweeps, names, strict=True) if data.winner]
    if len(scored) < 2:
        return "Fewer than two of the sweeps have a trial that trained to its end."
    scored.sort(reverse=True)
    lead = f"{scored[0][1]} found the highest score, {scored[0][0]:.4f}; {scored[1][1]} {scored[1][0]:.4f}"
    return f"{lead}. Each is of one training: only `voxtune confirm` tells a better recipe from a lucky one."


def protocol_section(found: RunComparison, sweeps: Sequence[SweepData], names: Sequence[str]) -> Section:
    """Return whether the scores can be compared, and what differs."""

    def rows_of(values: dict[str, tuple[Any, ...]]) -> list[list[str]]:
        return [
            [name, *(data.privacy.text(setting_text(of)) for data, of in zip(sweeps, values_of, strict=True))]
            for name, values_of in values.items()
        ]

    columns, align = ["setting", *names], "l" * (1 + len(names))
    blocks: list[Block] = []
    if found.meaning:
        blocks.append(Table("What scores depend on, and differs", columns, rows_of(found.meaning), align))
    if found.search:
        blocks.append(Table("How they searched, which scores do not depend on", columns, rows_of(found.search), align))
    lead = "No: they differ in what a score depends on."
    if found.comparable:
        lead = "Yes: data, split, epochs, metric and validation are the same."
    return Section("protocol", "Can the scores be compared?", lead, blocks)


def progress_section(found: RunComparison, names: Sequence[str]) -> Section | None:
    """Return the best score so far over the time that trials took; None before a trial has trained to its end."""
    traces: list[dict[str, Any]] = []
    for place, (run, name) in enumerate(zip(found.runs, names, strict=True)):
        curve = [(spent, score) for spent, score in best_so_far(run, on_gpu=found.on_gpu) if score is not None]
        colour, dash = LINES[place % len(LINES)]
        points = {"x": [round(spent, 4) for spent, _ in curve], "y": [round(score, 4) for _, score in curve]}
        line = {"color": colour, "dash": dash, "width": 2, "shape": "hv"}
        traces.append({"type": "scatter", "mode": "lines", "name": chart_text(name), "line": line, **points})
    if not any(trace["x"] for trace in traces):
        return None
    unit = "GPU hours" if found.on_gpu else "hours of training, summed over trials"
    layout = {"xaxis": axis(unit, rangemode="tozero"), "yaxis": axis("best score so far"), "showlegend": True}
    summary = f"Step lines of the best score so far of {len(names)} sweeps over {unit}."
    blocks: list[Block] = [Figure("progress_chart", "Best score so far", summary, {"data": traces, "layout": layout})]
    rows = [
        [f"{milestone.hours:.2f}", *map(score_text, milestone.best)]
        + [DASH if milestone.ahead is None else names[milestone.ahead]] * found.comparable
        for milestone in found.milestones
    ]
    columns, align = [unit, *names, *["ahead"] * found.comparable], "r" * (1 + len(names)) + "l" * found.comparable
    blocks.append(Table("After the same effort, up to the end of the shortest", columns, rows, align))
    lead = "The best score of the trials that had trained to their end, over the time that all trials had taken."
    return Section("progress", "Progress", lead, blocks)


def importance_section(found: RunComparison, names: Sequence[str]) -> Section | None:
    """Return how much each option explains in each sweep; None if no sweep has trials enough to tell."""
    shares = [{option.name: option for option in of.options} for of in found.importances]
    options = dict.fromkeys(name for of in shares for name in of)
    if not any(of.enough for of in found.importances):
        return None
    rows = [[name, *(cell_of(of.get(name)) for of in shares)] for name in options]
    table = Table(
        "Share of the differences between trials that an option explains",
        ["option", *names],
        rows,
        "l" * (1 + len(names)),
    )
    note = Note("Given with its interval where the option is shown to matter.")
    return Section("importance", "Which options matter", "By the trials of each sweep.", [table, note])


def cell_of(option: OptionImportance | None) -> str:
    """Return what a sweep says of an option, None if it did not search it."""
    if option is None:
        return "not searched"
    if option.share is None or option.verdict != "matters":
        return str(option.verdict)
    return f"{share_text(option.share)} [{share_text(option.low or 0)}, {share_text(option.high or 0)}]"


def recipes_section(found: RunComparison, names: Sequence[str]) -> Section | None:
    """Return the winners' recipes side by side; None if a sweep has no winner."""
    if not all(found.winners):
        return None
    rows = [
        [option, *("no effect" if value is None else value_text(value) for value in values)]
        for option, values in found.recipes.items()
    ]
    columns = [
        "option",
        *(f"{name}, trial {trial.number}" for name, trial in zip(names, found.winners, strict=True) if trial),
    ]
    lead = f"The winners differ in {counted(len(rows), 'option')}."
    blocks = [Table("Options that differ", columns, rows, "l" + "r" * len(names))] if rows else []
    return Section("recipes", "Winners' recipes", lead, blocks)
