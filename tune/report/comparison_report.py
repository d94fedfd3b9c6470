"""The report that compares several sweeps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trainable.core.brats import REGIONS
from trainable.core.counted import counted
from trainable.core.options import to_dict
from tune.report.blocks import Block, Facts, Figure, Note, Section, Table
from tune.report.cases_section import privacy_text
from tune.report.chart_style import axis
from tune.report.overview import confirmed_text, run_name
from tune.report.page import Page
from tune.report.sweep_data import SweepData, hours_text, read_sweep, score_text, share_text, value_text
from tune.run.events import EventKind
from tune.run.import_trials import comparability_key
from tune.run.results import Run

LINES = (
    ("var(--accent)", "solid"),
    ("var(--stopped)", "dash"),
    ("var(--complete)", "dot"),
    ("var(--winner)", "dashdot"),
)


def comparison_page(runs: Sequence[Run], *, anonymous: bool) -> Page:
    """Return the report that compares runs. anonymous: names no case, machine or folder."""
    sweeps = [read_sweep(run, anonymous=anonymous) for run in runs]
    names = sweep_names(sweeps)
    sections = [
        result_section(sweeps, names),
        protocol_section(sweeps, names),
        progress_section(sweeps, names),
        recipes_section(sweeps, names),
    ]
    return Page(
        title=" and ".join(names),
        subtitle=f"Comparison of {len(runs)} sweeps",
        facts=Facts(
            [
                (name, f"{data.state}; {counted(len(data.run.own_trials), 'trial')}")
                for name, data in zip(names, sweeps, strict=True)
            ]
        ),
        privacy=privacy_text([], anonymous=anonymous),
        sections=[section for section in sections if section is not None],
        trials={},
    )


def sweep_names(sweeps: Sequence[SweepData]) -> list[str]:
    """Return the names of the runs' folders, numbered if some are alike."""
    names = [run_name(data.run.folder) for data in sweeps]
    return [f"{name} ({place})" if names.count(name) > 1 else name for place, name in enumerate(names, 1)]


def result_section(sweeps: Sequence[SweepData], names: Sequence[str]) -> Section:
    """Return what each sweep has found and cost, a column each."""
    rows: list[list[str]] = []
    for title, cell in {
        "winner": lambda data: f"trial {data.winner.number}" if data.winner else "none yet",
        "score of the winner": lambda data: score_text(data.winner and data.winner.score),
        **{f"Dice {region} of the winner": region_cell(region) for region in REGIONS},
        "score of the default recipe": lambda data: score_text(data.default and data.default.score),
        "confirmed": confirmed_text,
        "trials": lambda data: str(len(data.run.own_trials)),
        "trained to the end": lambda data: str(sum(trial.finished for trial in data.run.own_trials)),
        "GPU hours": lambda data: f"{data.effort.gpu_hours:,.2f}" if data.effort.gpu_hours else "0 (CPU)",
        "training time": lambda data: hours_text(data.effort.trial_seconds),
        "saved by early stopping": lambda data: share_text(data.effort.saved_share),
    }.items():
        rows.append([title, *(cell(data) or "\N{EN DASH}" for data in sweeps)])
    table = Table("Validation cases, one training per trial", ["sweep", *names], rows, "l" * (1 + len(names)))
    return Section("result", "Result", result_sentence(sweeps, names), [table])


def region_cell(region: str) -> Any:
    """Return the function that gives the winner's Dice of a region."""
    return lambda data: score_text(data.winner.dice.get(region) if data.winner else None)


def result_sentence(sweeps: Sequence[SweepData], names: Sequence[str]) -> str:
    """Return which sweep's winner scores highest, if scores can be compared."""
    if protocol_rows(sweeps):
        return "The scores of these sweeps cannot be compared: see what differs in their protocol."
    scored = [(data.winner.score or 0.0, name) for data, name in zip(sweeps, names, strict=True) if data.winner]
    if len(scored) < 2:
        return "Fewer than two of the sweeps have a trial that trained to its end."
    scored.sort(reverse=True)
    lead = f"{scored[0][1]} found the higher score, {scored[0][0]:.4f}; {scored[1][1]} {scored[1][0]:.4f}"
    return f"{lead}. Each is of one training: only `voxtune confirm` tells a better recipe from a lucky one."


def protocol_rows(sweeps: Sequence[SweepData]) -> list[list[str]]:
    """Return what the meaning of scores depends on and differs between the sweeps: a name, and a value per sweep."""
    keys = [comparability_key(data.run.config) for data in sweeps]
    ignored = "study.seed" if all(key["record.split"] for key in keys) else "record."  # the split's hash says more
    return [
        [name, *(data.privacy.text(value_text(key[name])) for key, data in zip(keys, sweeps, strict=True))]
        for name in keys[0]
        if not name.startswith(("early_stopping.", ignored)) and any(key[name] != keys[0][name] for key in keys)
    ]


def protocol_section(sweeps: Sequence[SweepData], names: Sequence[str]) -> Section:
    """Return whether the scores can be compared, and what differs."""
    rows = protocol_rows(sweeps)
    blocks: list[Block] = []
    if rows:
        blocks.append(Table("What differs", ["setting", *names], rows, "l" * (1 + len(names))))
    spaces = {repr(data.run.config.space.to_dict()) for data in sweeps}
    stopping = {repr(data.run.config.early_stopping) for data in sweeps}
    searched = [
        f"{what} differ"
        for what, found in (("search spaces", spaces), ("rules of early stopping", stopping))
        if len(found) > 1
    ]
    if searched:
        blocks.append(Note(f"How they searched: {', '.join(searched)}. That does not change what a score means."))
    lead = (
        "No: they differ in what a score depends on."
        if rows
        else "Yes: the same data, split, epochs, metric and validation."
    )
    return Section("protocol", "Can the scores be compared?", lead, blocks)


def progress_section(sweeps: Sequence[SweepData], names: Sequence[str]) -> Section | None:
    """Return the best score so far over training time; None before a trial has ended."""
    gpus = all(data.effort.gpu_hours for data in sweeps)
    traces: list[dict[str, Any]] = []
    for place, (data, name) in enumerate(zip(sweeps, names, strict=True)):
        hours, scores = best_over_hours(data, gpus=gpus)
        colour, dash = LINES[place % len(LINES)]
        line = {"color": colour, "dash": dash, "width": 2, "shape": "hv"}
        traces.append({"type": "scatter", "mode": "lines", "name": name, "x": hours, "y": scores, "line": line})
    if not any(trace["x"] for trace in traces):
        return None
    unit = "GPU hours" if gpus else "hours of training, summed over trials"
    layout = {"xaxis": axis(unit, rangemode="tozero"), "yaxis": axis("best score so far"), "showlegend": True}
    summary = f"Step lines of the best score so far of {len(sweeps)} sweeps over {unit}."
    figure = Figure("progress_chart", "Best score so far", summary, {"data": traces, "layout": layout})
    lead = "The best score of the trials that had trained to their end, over the time that all trials had taken."
    return Section("progress", "Progress", lead, [figure])


def best_over_hours(data: SweepData, *, gpus: bool) -> tuple[list[float], list[float]]:
    """Return hours and best score after each trial that ended with a better one, and at the end.

    Trials count in the order in which they ended, by events.jsonl, or without it in that of their numbers.
    gpus: GPU hours instead of hours.
    """
    ended = {event.trial: event.time for event in data.events if event.kind == EventKind.TRIAL_ENDED}
    trials = sorted(
        data.run.own_trials, key=lambda trial: (ended.get(trial.number, 0 if not ended else 1e18), trial.number)
    )
    factor, spent = (data.effort.gpus_per_trial if gpus else 1.0) / 3600, 0.0
    hours, scores = list[float](), list[float]()
    for trial in trials:
        spent += trial.seconds * factor
        score = trial.score or 0.0
        if trial.finished and (not scores or score > scores[-1]):
            hours.append(round(spent, 4))
            scores.append(round(score, 4))
    return ([*hours, round(spent, 4)], [*scores, scores[-1]]) if scores else ([], [])


def recipes_section(sweeps: Sequence[SweepData], names: Sequence[str]) -> Section | None:
    """Return the winners' recipes side by side; None with fewer than two winners."""
    found = [(data, data.winner, name) for data, name in zip(sweeps, names, strict=True)]
    winners = [(data, winner, name) for data, winner, name in found if winner is not None]
    if len(winners) < 2:
        return None
    recipes = [to_dict(data.run.recipe(winner)) for data, winner, _ in winners]
    searched = dict.fromkeys(parameter.name for data, _, _ in winners for parameter in data.run.config.space.parameters)
    rows = [
        [option, *(value_text(recipe[option]) for recipe in recipes)]
        for option in searched
        if any(recipe[option] != recipes[0][option] for recipe in recipes)
    ]
    columns = ["option", *(f"{name}, trial {winner.number}" for _, winner, name in winners)]
    lead = f"The winners differ in {counted(len(rows), 'option')} of the {len(searched)} that were searched."
    return Section(
        "recipes", "Winners' recipes", lead, [Table("Options that differ", columns, rows, "l" + "r" * len(winners))]
    )
