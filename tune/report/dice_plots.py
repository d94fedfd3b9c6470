"""Dice by region and case of a sweep's best trials, of a training, or of a confirmation's recipes, as HTML."""

from __future__ import annotations

from pathlib import Path

from trainable.training.case_scores import read_case_scores
from tune.report.confirm_scores import arm_names, mean_scores, read_case_rows
from tune.report.dice_strips import Recipe, Strips, strips_html
from tune.report.training_scores import cache_of, read_test_scores, validation_scores
from tune.run.confirm_dir import ConfirmDir
from tune.run.results import Run, TrialResult

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
    default = run.default_trial
    shown = [*finished, *([default] if default is not None and default not in finished else [])]
    recipes = [recipe_of(trial, run) for trial in shown]
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
    sections, rows = [], read_case_rows(ConfirmDir(folder).scores)
    for part, title in (("val", "validation"), ("test", "test")):
        arms = mean_scores(rows, part)
        recipes = [Recipe(arm_names(arm), arm_names(arm), arms[arm]) for arm in reversed(arms)]
        if recipes:  # the file has the default first and the winner last
            strips = Strips(title, recipes, cache, recipes[0].label, "recipe, mean over its trainings")
            sections.append(strips_html(strips, anonymous=anonymous, name=f"{name}_{title}"))
    return "\n".join(sections)


def recipe_of(trial: TrialResult, run: Run) -> Recipe:
    """Return a trial with the scores of its best epoch; without any if its folder has none, as of an imported trial."""
    scores = read_case_scores(run.dir.trial(trial.number).case_scores).get(trial.best_epoch, {})
    if trial is run.default_trial:
        label = "the default recipe" + ("" if trial.finished else f" up to epoch {trial.epoch}")
        return Recipe(label, "default", scores)
    winner = ", the winner" if trial is run.ranking[0] else ""
    return Recipe(f"trial {trial.number}{winner}", str(trial.number), scores)
