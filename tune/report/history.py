"""The optimisation history: the score of each trial, and the best so far."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tune.report.blocks import Figure, Section
from tune.report.chart_style import MARKS, axis, group_of, winner_mark
from tune.report.sweep_data import SweepData, score_text
from tune.run.ranking import ranked_score
from tune.run.results import Run, TrialResult

MAX_TICKS = 16  # up to which each trial has one


def history_section(data: SweepData) -> Section | None:
    """Return the section, None while no trial has a score."""
    if not data.run.ranking:
        return None
    figures = [history_figure(data), *([cost_figure(data)] if data.run.config.objective.cost else [])]
    return Section("history", "Optimisation history", history_sentence(data), figures)


def best_so_far(data: SweepData) -> list[tuple[int, float]]:
    """Return the numbers and scores of the finished trials that were the best when all before them had ended."""
    best: list[tuple[int, float]] = []
    for trial in data.run.trials:
        score = trial.score
        if trial.finished and not trial.outside_space and score is not None and (not best or score > best[-1][1]):
            best.append((trial.number, score))
    return best


def history_sentence(data: SweepData) -> str:
    """Return when the best was found, and what the last fifth of the trials has added."""
    best, last = best_so_far(data), len(data.run.trials) - 1
    if not best:
        return "No trial has trained to its end yet; open marks are trials that were stopped before."
    number, score = best[-1]
    late = [value for of, value in best if of <= 0.8 * last]
    lead = f"The best score, {score_text(score)}, was found by trial {number} of {last + 1}"
    if len(data.run.trials) < 20 or not late:
        return f"{lead}."
    gained = score - late[-1]
    grown = f"added {gained:.4f}: more trials may find better ones" if gained > 0 else "found no better one"
    return f"{lead}; the last fifth of the trials {grown}."


def history_figure(data: SweepData) -> Figure:
    """Return a mark per trial, by how it ended, and the best score so far as a line."""
    traces: list[dict[str, Any]] = []
    for group, mark in MARKS.items():
        trials = [t for t in data.run.trials if t.score is not None and group_of(t) == group]
        if trials:
            numbers = [trial.number for trial in trials]
            scores = [round(trial.score or 0.0, 4) for trial in trials]
            traces.append(mark.trace(numbers, scores, trials=numbers))
    if (winner := data.winner) is not None:
        traces.append(winner_mark(winner.number, winner.score or 0.0, winner.number))
    best = best_so_far(data)
    if best:
        steps = [*best, (data.run.trials[-1].number, best[-1][1])]
        x, y = [number for number, _ in steps], [round(score, 4) for _, score in steps]
        line = {"color": "var(--fg)", "width": 1.5, "shape": "hv"}
        traces.append({"type": "scatter", "mode": "lines", "name": "best so far", "x": x, "y": y, "line": line})
        traces[-1]["hoverinfo"] = "skip"
    ticks = {"dtick": 1} if len(data.run.trials) <= MAX_TICKS else {}
    layout = {"xaxis": axis("trial", **ticks), "yaxis": axis(f"{data.score_name} (validation)"), "showlegend": True}
    summary = f"Scatter plot of {len(data.run.ranking)} trials by number and score. {history_sentence(data)}"
    return Figure("history_chart", "Score of each trial", summary, {"data": traces, "layout": layout})


def cost_figure(data: SweepData) -> Figure:
    """Return the trials that trained to their end by cost and score, and the Pareto front as a line."""
    finished, front = [trial for trial in data.run.ranking if trial.finished], data.run.pareto_front()
    line = {"color": "var(--fg)", "width": 1.5, "shape": "hv"}
    costs, scores = cost_and_score(data.run, front)
    marks = MARKS["complete"].trace(*cost_and_score(data.run, finished), trials=[trial.number for trial in finished])
    joined = {"type": "scatter", "mode": "lines", "name": "Pareto front", "line": line, "hoverinfo": "skip"}
    late = "mean of the last quarter, " if data.run.ranked_by_late else ""
    unit = "GPU seconds" if data.run.config.objective.cost == "gpu_seconds" else "seconds"
    layout = {"xaxis": axis(f"cost, {unit}"), "yaxis": axis(f"{late}{data.score_name}"), "showlegend": True}
    listed = ", ".join(f"trial {trial.number}" for trial in front)
    summary = f"Scatter plot of {len(finished)} trials by cost and score. On the Pareto front: {listed or 'none'}."
    title = "Cost and score: no other trial has a higher score for less than those on the Pareto front"
    spec = {"data": [marks, {**joined, "x": costs, "y": scores}], "layout": layout}
    return Figure("cost_chart", title, summary, spec)


def cost_and_score(run: Run, trials: Sequence[TrialResult]) -> tuple[list[float], list[float]]:
    """Return the costs of trials that have one, and the scores that they are ranked by."""
    scores = [ranked_score(trial, by_late=run.ranked_by_late) for trial in trials]
    return [round(trial.cost or 0.0, 1) for trial in trials], [round(score, 4) for score in scores]
