"""Dice by region and case of a sweep's best trials, of a training, or of a confirmation's recipes, as HTML."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from trainable.core.errors import InputError
from trainable.training.case_scores import SCORE_COLUMNS, read_case_scores
from tune.report.dice_strips import Recipe, Strips, strips_html
from tune.report.training_scores import cache_of, read_test_scores, validation_scores
from tune.run.confirm_dir import ConfirmDir
from tune.run.results import Run, TrialResult

if TYPE_CHECKING:  # it imports torch, and a report does without it
    from trainable.evaluation.metrics import Scores

TOP = 5  # trials that are shown besides the default


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
    default = next((trial for trial in run.own_trials if is_default(trial, run)), finished[0])
    recipes = [recipe_of(trial, run) for trial in [*finished, *[default] * (default not in finished)]]
    cache = Path(run.config.record.cache_dir or "")
    return strips_html(
        Strips("validation", recipes, cache, "the winner", "trial, the winner first"), anonymous=anonymous, name=name
    )


def dice_section_of_training(folder: Path, *, anonymous: bool, name: str = "dice") -> str:
    """Return the same of a training's validation cases, and of its test cases if it has scored them.

    folder: of a training or an ensemble. anonymous, name and errors: as for dice_section.
    """
    parts = {"validation": validation_scores(folder)[1], "test": read_test_scores(folder).scores}
    cache = cache_of(folder)
    sections = [
        strips_html(
            Strips(part, [Recipe(folder.name, folder.name, scores)], cache, "this model", "model"),
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
    sections = []
    for part, title in (("val", "validation"), ("test", "test")):
        arms = list(read_confirm_scores(ConfirmDir(folder).scores, part).items())
        recipes = [Recipe(arm_label(arm), arm_label(arm), scores) for arm, scores in reversed(arms)]
        if recipes:  # the file has the default first and the winner last
            strips = Strips(title, recipes, cache, recipes[0].label, "recipe, mean over its trainings")
            sections.append(strips_html(strips, anonymous=anonymous, name=f"{name}_{title}"))
    return "\n".join(sections)


def arm_label(arm: str) -> str:
    """Return what a recipe of a confirmation is called: "trial 12" for trial_0012, else its name."""
    number = arm.removeprefix("trial_")
    return f"trial {int(number)}" if number != arm and number.isdigit() else arm


def read_confirm_scores(path: Path, part: str) -> dict[str, dict[str, Scores]]:
    """Return the mean score of each case over the trainings of each recipe, by recipe and case; {} without a file.

    path: scores.csv of a confirmation. part: "val" or "test".

    Raises:
        InputError: if the file is damaged.
    """
    found: dict[str, dict[str, list[list[float]]]] = {}
    if not path.exists():
        return {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                if row["part"] == part:
                    trainings = found.setdefault(row["arm"], {}).setdefault(row["case"], [])
                    trainings.append([float(row[column]) for column in SCORE_COLUMNS])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: damaged ({error!r}); run `voxtune confirm` again") from None
    return {
        arm: {case: dict(zip(SCORE_COLUMNS, np.mean(of, axis=0).tolist(), strict=True)) for case, of in cases.items()}
        for arm, cases in found.items()
    }


def is_default(trial: TrialResult, run: Run) -> bool:
    """Return whether a trial has the default recipe."""
    return not trial.outside_space and trial.values == run.config.space.default_values()


def recipe_of(trial: TrialResult, run: Run) -> Recipe:
    """Return a trial with the scores of its best epoch; without any if its folder has none, as of an imported trial."""
    scores = read_case_scores(run.dir.trial(trial.number).case_scores).get(trial.best_epoch, {})
    if is_default(trial, run):
        label = "the default recipe" + ("" if trial.finished else f" up to epoch {trial.epoch}")
        return Recipe(label, "default", scores)
    winner = ", the winner" if trial is run.ranking[0] else ""
    return Recipe(f"trial {trial.number}{winner}", str(trial.number), scores)
