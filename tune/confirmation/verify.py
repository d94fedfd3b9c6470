"""Checks RUN/confirm by the files in it: are its trainings, its scores and its verdict what they say they are?"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

from trainable.core.epoch_scale import scale_to_epochs
from trainable.core.errors import InputError
from trainable.core.option_files import load_options
from trainable.core.options import make_config
from trainable.data.split import load_split
from trainable.training.training_dir import TrainingDir
from trainable.training.training_log import read_rows
from tune.confirmation.plan import ConfirmPlan, load_plan, recipe_values
from tune.confirmation.report import Confirmation, evaluate_confirmation, tested_seeds
from tune.confirmation.scores import ConfirmScores, best_epoch, column_of, scores_text
from tune.confirmation.status import has_ended, load_result
from tune.run.results import Run

Finding = str


def verify_confirmation(run: Run) -> dict[str, list[Finding]]:
    """Return the findings of each check by its name, an empty list for a check that is passed; {} without RUN/confirm.

    Nothing is written.

    Raises:
        InputError: if plan.json or confirm.json is damaged.
    """
    folder = run.dir.confirm
    plan = load_plan(folder.plan)
    if plan is None:
        return {}
    scores = ConfirmScores(folder, plan)
    checks: dict[str, Callable[[], Iterator[Finding]]] = {
        "confirm, seeds that the sweep has not had": lambda: check_seeds(run, plan),
        "confirm, trainings of the planned recipes on the planned cases": lambda: check_trainings(run, plan, scores),
        "confirm, best epochs and models by the scores per case": lambda: check_best_epochs(plan, scores),
        "confirm, scores.csv and the verdict by the trainings": lambda: check_verdict(run, plan, scores),
    }
    return {name: list(check()) for name, check in checks.items()}


def check_seeds(run: Run, plan: ConfirmPlan) -> Iterator[Finding]:
    """Check that no training of the confirmation has the seed of a trial, and none is there twice."""
    if used := sorted({trial.seed for trial in run.trials} & set(plan.seeds)):
        yield f"the seeds {used} are those of trials of the sweep"
    if len(set(plan.seeds)) < len(plan.seeds):
        yield f"a seed is there twice: {list(plan.seeds)}"


def begun_trainings(plan: ConfirmPlan, scores: ConfirmScores) -> Iterator[tuple[str, int, int | None, TrainingDir]]:
    """Yield arm, seed, fold and folder of each planned training that has begun."""
    for arm in plan.arms:
        for seed in plan.seeds:
            for fold in plan.fold_indices:
                paths = scores.folder.training(arm.name, seed, fold)
                if paths.config.exists():
                    yield arm.name, seed, fold, paths


def check_trainings(run: Run, plan: ConfirmPlan, scores: ConfirmScores) -> Iterator[Finding]:
    """Check the recipe, seed, epochs and split of each training, and that no folder is of a training unplanned."""
    folders, base = set(), run.config.base_config()
    for name, seed, fold, paths in begun_trainings(plan, scores):
        folders.add(paths.path)
        config = make_config(load_options(paths.config), str(paths.config), begun=True)
        if config.seed != seed or config.epochs != plan.epochs:
            yield f"{paths.path} was trained with seed {config.seed} for {config.epochs} epochs"
        if recipe_values(config) != recipe_values(scale_to_epochs(plan.arm(name).config(base), plan.epochs)):
            yield f"{paths.path} was trained with another recipe than {name}"
        wanted = run.dir.split if fold is None else scores.folder.fold_split(fold)
        if not paths.metrics.exists():  # it may have been killed before it wrote its split
            continue
        try:
            if load_split(paths.split) != load_split(wanted):
                yield f"{paths.path} was trained with another split than {wanted}"
        except InputError as error:
            yield str(error)
    for path in sorted(scores.folder.trainings.glob("*/*/training_config.json")):
        if path.parent not in folders:
            yield f"{path.parent} is of no planned training"


def check_best_epochs(plan: ConfirmPlan, scores: ConfirmScores) -> Iterator[Finding]:
    """Check that the best epoch of each training has the highest score, that of its cases, and is its model's."""
    from trainable.training import checkpoint  # here: torch takes seconds to import

    for name, seed, fold, paths in begun_trainings(plan, scores):
        try:
            if not (epoch := best_epoch(paths)):
                continue
            by_epoch = {
                int(row["epoch"]): float(row[plan.metric]) for row in read_rows(paths.metrics) if row.get(plan.metric)
            }
            if by_epoch.get(epoch) != max(by_epoch.values()):
                yield f"{paths.metrics}: the best epoch is {epoch}, its scores are {by_epoch}"
            of_cases = [case[column_of(plan.metric)] for case in scores.val(name, seed, fold).values()]
            if not math.isclose(sum(of_cases) / len(of_cases), by_epoch[epoch], abs_tol=1e-9):
                yield f"{paths.case_scores}: the mean of epoch {epoch} is not that in metrics.csv"
            if (saved := checkpoint.load_checkpoint(paths.best)["epoch"]) != epoch:
                yield f"{paths.best} is of epoch {saved}, expected {epoch}"
        except InputError as error:
            yield str(error)


def check_verdict(run: Run, plan: ConfirmPlan, scores: ConfirmScores) -> Iterator[Finding]:
    """Check that scores.csv and confirm.json are what the folders of the trainings give.

    Nothing is checked before the confirmation has ended, since it may have trained more when it was killed.
    """
    content = load_result(scores.folder)
    if content is None or not has_ended(run, content):
        return
    errors = {(arm, int(index)): error for arm, index, error in content["errors"]}
    try:
        found = evaluate_confirmation(run, plan, scores, errors, take_best=content["take_best"])
        tested = tested_seeds(found.race, found.val) if found.test else {}
        expected = scores_text(scores.rows(found.race.judged, tested))
    except InputError as error:
        yield str(error)
        return
    yield from (f"confirm.json: {name} is not what the trainings give" for name in differing(found, content))
    if not scores.folder.scores.exists() or scores.folder.scores.read_bytes() != expected.encode():
        yield f"{scores.folder.scores} is not what the trainings give"


def differing(found: Confirmation, content: dict[str, object]) -> list[str]:
    """Return the names in confirm.json whose values differ from what was found; words may be of another version."""

    def values(entry: Any) -> Any:
        return {**entry, "words": ""} if isinstance(entry, dict) else entry

    now, names = found.to_json(), ("chosen", "ended", "dropped", "validation", "test")
    return [name for name in names if values(now[name]) != values(content[name])]
