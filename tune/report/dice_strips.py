"""A strip of points per recipe: the Dice of each case by region, the same case joined, and the worst cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trainable.core.brats import REGIONS
from tune.report.case_causes import likely_cause, truth_ml
from tune.report.chart_style import chart_text
from tune.report.rendering import render, static_text

if TYPE_CHECKING:  # it imports torch, and a report does without it
    from trainable.evaluation.metrics import Scores

WORST = 5  # cases in the table
SPREAD = 0.6  # of the points of a recipe, of the distance to the next one


@dataclass(frozen=True)
class Recipe:
    """A column of points. label: its name. tick: a shorter one, below the axis. scores: see SCORE_COLUMNS, by case."""

    label: str
    tick: str
    scores: Mapping[str, Scores]


@dataclass(frozen=True)
class Strips:
    """What one set of plots shows.

    part: "validation" or "test". recipes: the first one gives the order of the cases. cache: of the preprocessed cases,
    which may be gone. subject: what the first recipe is called in a sentence. axis: what the recipes are.
    """

    part: str
    recipes: Sequence[Recipe]
    cache: Path
    subject: str
    axis: str

    @property
    def order(self) -> list[str]:
        """The cases from the worst to the best of the first recipe, by mean Dice."""
        scores = self.recipes[0].scores
        return sorted(scores, key=lambda name: (scores[name]["dice_mean"], name))


@dataclass(frozen=True)
class Points:
    """The points of a figure: where they are, the number of the case of each, and what is said of it."""

    x: list[float] = field(default_factory=list)
    y: list[float] = field(default_factory=list)
    cases: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)


def strips_html(strips: Strips, *, anonymous: bool, name: str) -> str:
    """Return the figures and the table of the worst cases as HTML; "" if the first recipe has no scores."""
    if not strips.recipes or not strips.recipes[0].scores:
        return ""
    order = strips.order
    titles = {case: f"case {number}" if anonymous else f"case {number}, {case}" for number, case in enumerate(order, 1)}
    worst = [worst_row(strips, case, titles[case]) for case in order[:WORST]]
    return render(
        "dice_plots.html.j2",
        name=name,
        part=strips.part,
        count=len(order),
        subject=strips.subject,
        figures=[strip_figure(strips, region, titles, f"{name}_{region}") for region in REGIONS],
        titles=list(titles.values()),
        joined=len(strips.recipes) > 1,
        regions=REGIONS,
        worst=worst,
        causes=any(row["cause"] for row in worst),
        script=static_text("dice_plots.js"),
    )


def strip_figure(strips: Strips, region: str, titles: Mapping[str, str], name: str) -> dict[str, Any]:
    """Return a region's figure as the template and report.js read it; titles: of the cases, in their order."""
    points, means, last = Points(), list[float | None](), max(len(titles) - 1, 1)
    for column, recipe in enumerate(strips.recipes):
        for number, (case, title) in enumerate(titles.items()):
            if case in recipe.scores:
                points.x.append(round(column + SPREAD * (number / last - 0.5), 3))
                points.y.append(round(recipe.scores[case][f"dice_{region}"], 4))
                points.cases.append(number)
                points.texts.append(chart_text(f"{title}, {recipe.label}"))
        of_recipe = [scores[f"dice_{region}"] for scores in recipe.scores.values()]
        means.append(round(float(np.mean(of_recipe)), 4) if of_recipe else None)
    known = [(column, mean) for column, mean in enumerate(means) if mean is not None]
    spoken = ", ".join(f"{strips.recipes[column].label} {mean:.3f}" for column, mean in known)
    return {
        "name": name,
        "title": f"Dice of {region}, {strips.part} cases",
        "summary": f"Dice of {region} of {len(titles)} {strips.part} cases. Mean: {spoken}",
        "spec": {"data": traces(region, points, known), "layout": layout(strips)},
    }


def traces(region: str, points: Points, means: Sequence[tuple[int, float]]) -> list[dict[str, Any]]:
    """Return the traces of a figure, as dice_plots.js needs them: first the points, last the line that joins some.

    means: of recipes, by their column.
    """
    dots = {
        "type": "scatter", "mode": "markers", "x": points.x, "y": points.y, "customdata": points.cases,
        "text": points.texts, "hovertemplate": "%{text}<br>%{y:.3f}<extra></extra>",
        "marker": {"color": f"var(--region-{region.lower()})", "size": 6, "opacity": 0.7},
    }  # fmt: skip
    bars = {
        "type": "scatter", "mode": "markers", "x": [column for column, _ in means], "y": [mean for _, mean in means],
        "marker": {"symbol": "line-ew-open", "size": 26, "color": "var(--fg)", "line": {"width": 2}},
        "hovertemplate": "mean %{y:.3f}<extra></extra>",
    }  # fmt: skip
    line = {
        "type": "scatter", "mode": "lines+markers", "x": [], "y": [], "hoverinfo": "skip",
        "line": {"color": "var(--accent)", "width": 1.5}, "marker": {"color": "var(--accent)", "size": 8},
    }  # fmt: skip
    return [dots, bars, line]


def layout(strips: Strips) -> dict[str, Any]:
    """Return the layout of a figure; the axis of Dice is the same in those of all regions."""
    cases = [scores for recipe in strips.recipes for scores in recipe.scores.values()]
    lowest = min((scores[f"dice_{region}"] for scores in cases for region in REGIONS), default=0.0)
    count = len(strips.recipes)
    ticks = {
        "tickvals": list(range(count)),
        "ticktext": [chart_text(recipe.tick) for recipe in strips.recipes],
        "tickangle": 0,
    }
    across = {**ticks, "range": [-0.6, count - 0.4], "showgrid": False, "title": {"text": strips.axis}}
    return {"xaxis": across, "yaxis": {"range": [round(max(-0.02, lowest - 0.05), 3), 1.02]}, "showlegend": False}


def worst_row(strips: Strips, case: str, title: str) -> dict[str, Any]:
    """Return a row of the table of the worst cases."""
    first, *others = strips.recipes
    scores = first.scores[case]
    elsewhere = {recipe.label: recipe.scores[case]["dice_mean"] for recipe in others if case in recipe.scores}
    return {
        "title": title,
        "dice": [f"{scores[column]:.3f}" for column in ("dice_mean", *(f"dice_{region}" for region in REGIONS))],
        "cause": likely_cause(scores, truth_ml(strips.cache, case), elsewhere),
    }
