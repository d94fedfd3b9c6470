"""A run as a notebook shows it: counts, cost, and the best trials with their learning curves and recipes, as HTML."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from trainable.core.options import format_value
from tune.analysis.trial_detail import reason
from tune.run.curves import trial_curve
from tune.run.effort import measure_effort
from tune.run.results import Run, TrialResult
from tune.terminal.recipe_words import RecipeWords
from tune.terminal.tables import summary_line

SHOWN = 5  # best trials
WIDTH, HEIGHT = 90, 18  # of a curve, in pixels
CELL = "padding:2px 10px;text-align:left"


def summary_html(run: Run) -> str:
    """Return the summary of a run; it takes the colours of the page around it."""
    head = f"<b>{escape(run.folder.name)}</b>: {escape(summary_line(run))}"
    lines = [head, escape(effort_text(run))]
    if not run.ranking:
        return f"<div>{'<br>'.join([*lines, 'no trial has a score yet'])}</div>"
    highest = max(trial.score or 0.0 for trial in run.ranking)
    names = ("trial", run.config.objective.score, "curve", "epochs", "ended", "where it differs from the default")
    header = "".join(f'<th style="{CELL}">{escape(name)}</th>' for name in names)
    rows = "".join(trial_row(run, trial, highest) for trial in run.ranking[:SHOWN])
    table = f'<table style="border-collapse:collapse"><thead><tr>{header}</tr></thead><tbody>{rows}</tbody></table>'
    return f"<div>{'<br>'.join(lines)}{table}</div>"


def effort_text(run: Run) -> str:
    """Return what the run has cost, and what early stopping has saved."""
    effort = measure_effort(run)
    hours = f"{effort.gpu_hours:.2f} GPU hours" if effort.gpus_per_trial else f"{effort.trial_seconds / 3600:.2f} hours"
    return f"{hours} of training; early stopping saved {effort.saved_share:.0%} of the epochs"


def trial_row(run: Run, trial: TrialResult, highest: float) -> str:
    """Return a trial's row of the table; highest: score at the top of the curves."""
    options = [f"{name}={format_value(value)}" for name, value in RecipeWords(run).differing(trial).items()]
    curve = list(trial_curve(run, trial).values())
    score = "" if trial.score is None else f"{trial.score:.4f}"
    cells = [str(trial.number), score, None, str(trial.epoch), reason(run, trial), ", ".join(options)]
    texts = (sparkline(curve, highest) if cell is None else escape(cell) for cell in cells)
    return "<tr>" + "".join(f'<td style="{CELL}">{text}</td>' for text in texts) + "</tr>"


def sparkline(values: Sequence[float], highest: float) -> str:
    """Return a learning curve as a small SVG; "" without values. highest: at its top; 0 is at its bottom."""
    if not values or highest <= 0:
        return ""
    step = (WIDTH - 4) / max(len(values) - 1, 1)
    points = [(2 + step * place, HEIGHT - 2 - (HEIGHT - 4) * value / highest) for place, value in enumerate(values)]
    text = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    label = f"scores from {values[0]:.3f} to {values[-1]:.3f}"
    return (
        f'<svg width="{WIDTH}" height="{HEIGHT}" role="img" aria-label="{label}"><title>{label}</title>'
        f'<polyline points="{text}" fill="none" stroke="currentColor" stroke-width="1.5"/>'
        f'<circle cx="{points[-1][0]:.1f}" cy="{points[-1][1]:.1f}" r="2" fill="currentColor"/></svg>'
    )
