"""Dice by region and case: a strip of points per recipe, the same case joined, and the worst cases with their cause."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trainable.core.brats import REGIONS
from trainable.core.errors import InputError
from trainable.training.case_scores import SCORE_COLUMNS, read_case_scores
from tune.report.case_causes import likely_cause, truth_ml
from tune.report.fragments import render, static_text
from tune.report.training_scores import cache_of, read_test_scores, validation_scores
from tune.run.confirm_dir import ConfirmDir
from tune.run.results import Run, TrialResult

if TYPE_CHECKING:  # it imports torch, and a report does without it
    from trainable.evaluation.metrics import Scores

TOP = 5  # trials that are shown besides the default
WORST = 5  # cases in the table
SPREAD = 0.6  # of the points of a recipe, of the distance to the next one


@dataclass(frozen=True)
class Recipe:
    """A column of points. label: its name below the axis. scores: of each case, see SCORE_COLUMNS."""

    label: str
    scores: Mapping[str, Scores]


@dataclass(frozen=True)
class Strips:
    """What one set of plots shows.

    part: "validation" or "test". recipes: the first one gives the order of the cases. cache: of the preprocessed cases,
    which may be gone. subject: what the first recipe is called in a sentence.
    """

    part: str
    recipes: Sequence[Recipe]
    cache: Path
    subject: str

    @property
    def order(self) -> list[str]:
        """The cases from the worst to the best of the first recipe, by mean Dice."""
        scores = self.recipes[0].scores
        return sorted(scores, key=lambda name: (scores[name]["dice_mean"], name))


def dice_section(run: Run, *, anonymous: bool, name: str = "dice") -> str:
    """Return HTML with the Dice of each validation case by the best trials and the default; "" without scores.

    The figures are drawn by report.js. The HTML has no heading.

    Args:
        anonymous: cases are numbered from the winner's worst to its best, not named.
        name: the beginning of the names of elements, unique in the page.

    Raises:
        InputError: if a case_scores.csv is damaged.
    """
    if not run.ranking:
        return ""
    finished = [trial for trial in run.ranking if trial.finished][:TOP] or run.ranking[:1]
    default = [trial for trial in run.trials if trial.number == 0 and trial not in finished]
    recipes = [Recipe(label_of(trial, run), scores_of(trial, run)) for trial in [*finished, *default]]
    cache = Path(run.config.record.cache_dir or "")
    return strips_html(Strips("validation", recipes, cache, "the winner"), anonymous=anonymous, name=name)


def dice_section_of_training(folder: Path, *, anonymous: bool, name: str = "dice") -> str:
    """Return the same of a training's validation cases, and of its test cases if it has scored them.

    folder: of a training or an ensemble. anonymous, name and errors: as for dice_section.
    """
    parts = {"validation": validation_scores(folder)[1], "test": read_test_scores(folder).scores}
    cache = cache_of(folder)
    sections = [
        strips_html(
            Strips(part, [Recipe(folder.name, scores)], cache, "this model"),
            anonymous=anonymous,
            name=f"{name}_{part}",
        )
        for part, scores in parts.items()
    ]
    return "\n".join(filter(None, sections))


def dice_section_of_confirmation(folder: Path, *, cache: Path, anonymous: bool, name: str = "dice") -> str:
    """Return the same of the recipes that a confirmation has compared: the mean over the trainings of each.

    folder: RUN/confirm. cache: of the preprocessed cases. anonymous, name and errors: as for dice_section.
    """
    found: dict[str, dict[str, dict[str, list[list[float]]]]] = {}
    path = ConfirmDir(folder).scores
    if not path.exists():
        return ""
    try:
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                cases = found.setdefault(row["part"], {}).setdefault(row["arm"], {})
                cases.setdefault(row["case"], []).append([float(row[column]) for column in SCORE_COLUMNS])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: damaged ({error}); run `voxtune confirm` again") from None
    sections = []
    for part, title in (("val", "validation"), ("test", "test")):
        # the default is the first arm; the order of the cases is that of the best challenger
        recipes = [
            Recipe(arm.replace("_", " "), mean_of(cases)) for arm, cases in reversed(found.get(part, {}).items())
        ]
        if recipes:
            strips = Strips(title, recipes, cache, recipes[0].label)
            sections.append(strips_html(strips, anonymous=anonymous, name=f"{name}_{title}"))
    return "\n".join(sections)


def mean_of(cases: Mapping[str, Sequence[Sequence[float]]]) -> dict[str, Scores]:
    """Return the mean score of each case over trainings."""
    return {
        case: dict(zip(SCORE_COLUMNS, np.mean(scores, axis=0).tolist(), strict=True)) for case, scores in cases.items()
    }


def label_of(trial: TrialResult, run: Run) -> str:
    """Return what a trial is called below the axis."""
    if trial.number == 0:
        return "default" if trial.finished else f"default, epoch {trial.best_epoch}"
    return f"trial {trial.number}" + (", winner" if trial is run.ranking[0] else "")


def scores_of(trial: TrialResult, run: Run) -> Mapping[str, Scores]:
    """Return the scores of a trial's best epoch, by case; {} if its folder has none, as of an imported trial."""
    return read_case_scores(run.dir.trial(trial.number).case_scores).get(trial.best_epoch, {})


def strips_html(strips: Strips, *, anonymous: bool, name: str) -> str:
    """Return the figures and the table of the worst cases as HTML; "" if the first recipe has no scores."""
    if not strips.recipes or not strips.recipes[0].scores:
        return ""
    order = strips.order
    titles = {case: f"case {number}" if anonymous else f"case {number}, {case}" for number, case in enumerate(order, 1)}
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
        worst=[worst_row(strips, case, titles[case]) for case in order[:WORST]],
        script=static_text("dice_plots.js"),
    )


def strip_figure(strips: Strips, region: str, titles: Mapping[str, str], name: str) -> dict[str, Any]:
    """Return a region's figure as the template and report.js read it; titles: of the cases, in their order."""
    x, y, numbers, texts, means = list[float](), list[float](), list[int](), list[str](), list[float]()
    for column, recipe in enumerate(strips.recipes):
        for number, (case, title) in enumerate(titles.items()):
            if case in recipe.scores:
                share = number / (len(titles) - 1) if len(titles) > 1 else 0.5
                x.append(round(column + SPREAD * (share - 0.5), 3))
                y.append(round(recipe.scores[case][f"dice_{region}"], 4))
                numbers.append(number)
                texts.append(f"{title}, {recipe.label}")
        of_recipe = [of[f"dice_{region}"] for of in recipe.scores.values()]
        means.append(round(float(np.mean(of_recipe)), 4) if of_recipe else float("nan"))
    known = [(column, mean) for column, mean in enumerate(means) if mean == mean]
    colour, labels = f"var(--region-{region.lower()})", [recipe.label for recipe in strips.recipes]
    points = {
        "type": "scatter", "mode": "markers", "x": x, "y": y, "customdata": numbers, "text": texts,
        "marker": {"color": colour, "size": 6, "opacity": 0.7}, "hovertemplate": "%{text}<br>%{y:.3f}<extra></extra>",
    }  # fmt: skip
    mean_marks = {
        "type": "scatter", "mode": "markers", "x": [column for column, _ in known], "y": [mean for _, mean in known],
        "marker": {"symbol": "line-ew-open", "size": 30, "line": {"width": 2, "color": "var(--fg)"}},
        "hovertemplate": "mean %{y:.3f}<extra></extra>",
    }  # fmt: skip
    line = {
        "type": "scatter", "mode": "lines+markers", "x": [], "y": [], "hoverinfo": "skip",
        "line": {"color": "var(--fg)", "width": 1.5}, "marker": {"color": "var(--fg)", "size": 7},
    }  # fmt: skip
    ticks = {"tickvals": list(range(len(labels))), "ticktext": labels, "range": [-0.6, len(labels) - 0.4]}
    axes = {"xaxis": {**ticks, "showgrid": False}, "yaxis": {"range": [max(0, min(y, default=0) - 0.05), 1.02]}}
    spoken = ", ".join(f"{labels[column]} {mean:.3f}" for column, mean in known)
    return {
        "name": name,
        "title": f"Dice of {region}",
        "summary": f"Dice of {region} of {len(titles)} {strips.part} cases. Mean: {spoken}",
        "spec": {"data": [points, mean_marks, line], "layout": {**axes, "showlegend": False}},
    }


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
