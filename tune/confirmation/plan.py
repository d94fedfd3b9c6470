"""What a confirmation compares, and how: RUN/confirm/plan.json."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from trainable.core.config import TrainConfig
from trainable.core.errors import InputError
from trainable.core.files import atomic_write_text
from trainable.core.options import make_config, option_names, to_dict
from tune.confirmation.race import DEFAULT
from tune.run.results import Run, TrialResult
from tune.run.run_dir import resume_command

PLAN_VERSION = 1
# What scores depend on in all arms, and how a message names it.
PROTOCOL = {
    "folds": "--folds",
    "epochs": "--epochs",
    "metric": "study.metric",
    "split": "a split with the hash",
    "data": "cases with the hash",
}
ONLY_THE_DEFAULT = "of all recipes only the default has trained to its end, so there is none to compare with it"
SEED_OFFSET = 1_000_000  # from the sweep's seed to those of a confirmation: trials have the sweep's seed + number


@dataclass(frozen=True)
class Arm:
    """A recipe that is compared.

    name: "default", trial_0031, or the stem of a file. recipe: the options of role recipe, as plain values. trial:
    number of the trial that had it and trained to its end, None if there is none. sweep_score: that trial's best score.
    """

    name: str
    recipe: dict[str, Any]
    trial: int | None = None
    sweep_score: float | None = None

    def config(self, base: TrainConfig) -> TrainConfig:
        """Return the sweep's base config with this recipe."""
        return make_config({**to_dict(base), **self.recipe}, f"the recipe {self.name}")


@dataclass(frozen=True)
class ConfirmPlan:
    """What a confirmation compares, and how.

    arms: the default first, then the challengers. seeds: of the trainings of each arm, in their order. top: number of
    the best trials that compete, as requested; arms has more once the ranking has changed. folds: 0 for none. epochs:
    of each training. metric: by which the best epoch is chosen and recipes are compared. split, data: hashes of the
    run's split and cases. winner: the number of the trial at the head of the ranking when the plan was last made.
    extended_after_test: test cases had been scored before seeds or arms were added.
    """

    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    top: int
    folds: int
    epochs: int
    metric: str
    split: str
    data: str
    winner: int
    extended_after_test: bool = False

    @property
    def challengers(self) -> tuple[str, ...]:
        """The names of the arms that compete with the default."""
        return tuple(arm.name for arm in self.arms if arm.name != DEFAULT)

    @property
    def fold_indices(self) -> tuple[int | None, ...]:
        """The folds of a seed, from 0; only None without folds."""
        return tuple(range(self.folds)) if self.folds else (None,)

    def arm(self, name: str) -> Arm:
        """Return the arm of this name."""
        return next(arm for arm in self.arms if arm.name == name)


def recipe_values(config: TrainConfig) -> dict[str, Any]:
    """Return the options of role recipe as plain values."""
    values = to_dict(config)
    return {name: values[name] for name in option_names(role="recipe")}


def default_arm(run: Run) -> Arm:
    """Return the recipe that the challengers are compared with: that of trial 0 as the sweep's YAML has it."""
    recipe = recipe_values(run.config.base_config())
    trial = next((t for t in run.trials if t.finished and recipe_values(run.recipe(t)) == recipe), None)
    return Arm(DEFAULT, recipe, trial.number if trial else None, trial.score if trial else None)


def trial_arm(run: Run, trial: TrialResult) -> Arm:
    """Return a trial's recipe as an arm."""
    return Arm(f"trial_{trial.number:04d}", recipe_values(run.recipe(trial)), trial.number, trial.score)


def choose_arms(run: Run, top: int, extra: Sequence[Arm]) -> tuple[Arm, ...]:
    """Return the default, the `top` best trials that trained to their end, and further recipes.

    A trial whose recipe is the default's or another arm's is left out, and the next one is taken.

    Raises:
        InputError: if no trial has trained to its end, there is no recipe besides the default, or two arms have the
            same name or recipe.
    """
    if not any(trial.finished for trial in run.ranking):
        raise InputError(f"{run.folder}: no trial has ended by itself yet, so there is nothing to confirm; wait")
    arms = [default_arm(run), *challengers(run)[:top]]
    if len(arms) == 1 and not extra:
        raise InputError(
            f"{run.folder}: {ONLY_THE_DEFAULT}; compare another with --recipe FILE, such as --recipe nnunet, or add "
            f"trials with `{resume_command(run.folder)} --trials N`"
        )
    for arm in extra:
        if any(arm.name == other.name for other in arms):
            raise InputError(f"--recipe: there is a recipe named {arm.name} already; give the file another name")
        if same := [other.name for other in arms if other.recipe == arm.recipe]:
            raise InputError(f"--recipe {arm.name}: has the same options as {same[0]}, which is compared already")
        arms.append(arm)
    return tuple(arms)


def challengers(run: Run) -> list[Arm]:
    """Return the recipes of the trials that trained to their end, best first, each once and without the default's."""
    found = [default_arm(run)]
    for trial in run.ranking:
        arm = trial_arm(run, trial)
        if trial.finished and all(arm.recipe != other.recipe for other in found):
            found.append(arm)
    return found[1:]


def unused_seeds(run: Run, count: int, offset: int = SEED_OFFSET) -> tuple[int, ...]:
    """Return seeds for trainings after the sweep: from the sweep's seed + offset on, none that a trial has had."""
    used = {trial.seed for trial in run.trials}
    seeds: list[int] = []
    candidate = run.config.seed + offset
    while len(seeds) < count:
        if candidate not in used:
            seeds.append(candidate)
        candidate += 1
    return tuple(seeds)


def extend_plan(begun: ConfirmPlan | None, wanted: ConfirmPlan, *, tested: bool) -> ConfirmPlan:
    """Return the plan of a confirmation that goes on: all arms of both, and as many seeds as the larger has.

    Recipes and seeds are never taken away, as their scores may have been seen.

    Args:
        begun: None if there is none.
        tested: test cases have been scored by what was begun.

    Raises:
        InputError: if another protocol (folds, epochs, metric, cases) is wanted, or another recipe under one name.
    """
    if begun is None:
        return wanted
    for name, meaning in PROTOCOL.items():
        old, new = getattr(begun, name), getattr(wanted, name)
        if old != new:
            raise InputError(
                f"the confirmation was begun with {meaning} {old}, and it would be {new} now, so that scores could not "
                "be compared: go on without that option, or move RUN/confirm away and start again"
            )
    arms = list(begun.arms)
    for arm in wanted.arms:
        same_name = next((other for other in arms if other.name == arm.name), None)
        if same_name is not None and same_name.recipe != arm.recipe:
            way = "move RUN/confirm away and start again" if arm.name == DEFAULT else "give it another name"
            raise InputError(f"the confirmation was begun with another recipe named {arm.name}; {way}")
        if same_name is None and all(other.recipe != arm.recipe for other in arms):
            arms.append(arm)
    new_seeds = [seed for seed in wanted.seeds if seed not in begun.seeds]
    seeds = (*begun.seeds, *new_seeds[: max(0, len(wanted.seeds) - len(begun.seeds))])
    grown = len(arms) > len(begun.arms) or len(seeds) > len(begun.seeds)
    late = begun.extended_after_test or (tested and grown)
    top = max(begun.top, wanted.top)
    return replace(begun, arms=tuple(arms), seeds=seeds, top=top, winner=wanted.winner, extended_after_test=late)


def save_plan(plan: ConfirmPlan, path: Path) -> None:
    """Write a plan as JSON, which load_plan reads."""
    atomic_write_text(path, json.dumps({"version": PLAN_VERSION, **asdict(plan)}, indent=2) + "\n")


def load_plan(path: Path) -> ConfirmPlan | None:
    """Return the plan in a file; None if there is none.

    Raises:
        InputError: if the file is damaged or of another version.
    """
    if not path.exists():
        return None
    try:
        values = json.loads(path.read_text())
        if values.pop("version") != PLAN_VERSION:
            raise ValueError(f"expected version {PLAN_VERSION}")
        arms = tuple(Arm(**arm) for arm in values.pop("arms"))
        return ConfirmPlan(arms=arms, seeds=tuple(values.pop("seeds")), **values)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path}: cannot be read ({error}); restore it, or move its folder away and start again"
        ) from None
