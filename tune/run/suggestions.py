"""Recipes that a user suggests to a sweep: files in RUN/suggestions, until the sweep's driver has enqueued them."""

from __future__ import annotations

import time
from pathlib import Path

from trainable.core.errors import InputError
from trainable.core.files import atomic_write_text
from trainable.core.logger import logger
from trainable.core.option_files import dump_yaml
from tune.run.results import Run
from tune.run.run_dir import RunDir, resume_command
from tune.search.enqueue import enqueue_recipe
from tune.search.journal import Journal
from tune.spec.named_recipes import find_recipe
from tune.spec.start_recipes import recipe_of_file


def suggest_recipe(run: Run, recipe: Path) -> str:
    """Put a recipe where the driver of a sweep finds it.

    Args:
        run: the sweep's.
        recipe: a file of options, or the bare name of a shipped one.

    Returns:
        When it is tried, in words.

    Raises:
        InputError: if there is no such file, or the recipe is outside the sweep's space or has been tried.
    """
    file = find_recipe(recipe)
    values = recipe_of_file(file, run.config.space)
    for trial in run.trials:
        if trial.values == values and not trial.outside_space:
            raise InputError(f"{file}: trial {trial.number} has this recipe already ({trial.status})")
    paths = run.dir
    paths.suggestions.mkdir(exist_ok=True)
    atomic_write_text(paths.suggestions / f"{time.time_ns()}.yaml", dump_yaml(values))
    command, count = resume_command(run.folder), len(run.own_trials)
    if run.target_reached:
        return f"{file.stem}: study.target is reached; to try it all the same: {command} --set study.target=null"
    if not run.trials_left:
        return f"{file.stem}: all {count} trials have been started; to try it: {command} --trials {count + 1}"
    if not run.driven:
        return f"{file.stem}: tried when the sweep goes on, before drawn recipes: {command}"
    return f"{file.stem}: tried as soon as a trial can start, before drawn recipes"


def enqueue_suggestions(paths: RunDir, journal: Journal) -> None:
    """Have the journal's next trial try the first recipe that was suggested, unless a recipe waits for it already.

    The others stay files, which count for another space too. A file is deleted once its recipe is in the journal, so
    that none is lost by a crash; one whose recipe a trial has is deleted too. A file that is no recipe of the space is
    renamed to NAME.refused.
    """
    if len(journal.study.get_trials(deepcopy=False)) > len(journal.trials()):
        return
    for file in sorted(paths.suggestions.glob("*.yaml")):
        try:
            values = recipe_of_file(file, journal.config.space)
        except InputError as error:
            logger.warning(f"a suggested recipe is refused: {error}")
            file.replace(file.with_suffix(".refused"))
            continue
        number = enqueue_recipe(journal.study, values)
        logger.info(
            f"a suggested recipe is tried as trial {number}"
            if number is not None
            else "a suggested recipe is not tried again: a trial has it"
        )
        file.unlink(missing_ok=True)
        if number is not None:
            return
