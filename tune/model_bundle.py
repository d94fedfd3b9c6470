"""A model of a sweep as a bundle of MONAI, with what the sweep's confirmation says of its recipe."""

from __future__ import annotations

from pathlib import Path

from trainable.bundle.contents import check_files, read_record
from trainable.core.config import TrainConfig
from trainable.core.counted import counted
from trainable.core.epoch_scale import scale_to_epochs
from trainable.core.options import make_config
from tune.confirmation.plan import Arm, ConfirmPlan, load_plan, recipe_values
from tune.confirmation.race import DEFAULT
from tune.confirmation.status import has_ended, load_result
from tune.confirmation.verdict import Verdict
from tune.run.results import read_run
from tune.run.run_dir import RunDir

OF_THE_SCHEDULE = ("scheduler", "milestones", "step_gamma")  # what a retraining without validation writes for plateau


def export_model(model: Path, out: Path, *, authors: str = "", with_case_names: bool = False) -> Path:
    """Write the model of a training, or of RUN/retrain/NAME, as a bundle; return its folder.

    The arguments and errors are those of trainable.bundle.export.export_bundle.
    """
    from trainable.bundle.export import export_bundle  # here: torch takes seconds to import
    from trainable.training.checkpoint import load_metadata
    from trainable.training.ensemble import find_models

    file = find_models([model])[0]
    config = make_config(load_metadata(file).get("config", {}), str(file), begun=True)
    confirmed = confirmation_of(model, config)
    return export_bundle(model, out, authors=authors, confirmed=confirmed, with_case_names=with_case_names)


def confirmation_of(model: Path, config: TrainConfig) -> str:
    """Return what the confirmation of a sweep says of the recipe of RUN/retrain/NAME; "" if it says nothing of it.

    Args:
        model: the folder.
        config: of its training, or of a member's.
    """
    folder = model.resolve()
    run_dir = RunDir(folder.parent.parent)
    if folder.parent != run_dir.retrain or not run_dir.config.exists():
        return ""
    content, plan = load_result(run_dir.confirm), load_plan(run_dir.confirm.plan)
    if content is None or plan is None:
        return ""
    run = read_run(run_dir.path)
    base = run.config.base_config()
    arm = next((arm for arm in plan.arms if is_recipe_of(arm, base, config)), None)
    if arm is None:
        return ""
    verdicts = [Verdict.from_json(content[part]) for part in ("validation", "test") if content[part] is not None]
    name = "the default recipe" if arm.name == DEFAULT else f"the recipe {arm.name}"
    ended = "" if has_ended(run, content) else ". The confirmation has not ended"
    lines = [f"{name} of the sweep, compared by trainings of {counted(plan.epochs, 'epoch')} with new seeds"]
    lines += [f"On {_cases(verdict, plan)}: {verdict_on(arm.name, verdict)}" for verdict in verdicts]
    return ". ".join(lines) + ended


def _cases(verdict: Verdict, plan: ConfirmPlan) -> str:
    """Return which cases a verdict is on, in words."""
    if verdict.cases == "validation" and plan.folds:
        return "the train and val cases, each scored by trainings that did not have it"
    return f"the {verdict.cases} cases"


def verdict_on(recipe: str, verdict: Verdict) -> str:
    """Return what a verdict says of the winner, and how the trainings of a recipe scored, in words.

    recipe: name of the arm, which may be the winner, the default or another one.
    """
    winner = "this recipe" if recipe == verdict.winner else f"the best challenger, {verdict.winner},"
    if not verdict.winner:
        words = verdict.words
    elif verdict.words.startswith("not shown"):
        words = f"that {winner} is better than the default is {verdict.words}"
    else:
        words = f"{winner} is {verdict.words}"
    scored = next((one for one in verdict.arms if one.name == recipe and one.mean), None)
    if scored is None:
        return f"{words}; this recipe has no score"
    mean = f"{verdict.metric} {scored.mean[verdict.metric]:.4f}"
    return f"{words}; {mean} by {counted(scored.trainings, verdict.unit)} of this recipe"


def is_recipe_of(arm: Arm, base: TrainConfig, config: TrainConfig) -> bool:
    """Return whether a model has the recipe of an arm, its schedule stretched to the model's epochs.

    Args:
        arm: of a confirmation.
        base: the options of the sweep that no trial changes.
        config: of the model.
    """
    recipe, own = recipe_values(scale_to_epochs(arm.config(base), config.epochs)), recipe_values(config)
    ignored = OF_THE_SCHEDULE if recipe["scheduler"] == "plateau" and own["scheduler"] == "multistep" else ()
    return all(own[name] == value for name, value in recipe.items() if name not in ignored)


def verify_bundle(folder: Path, data_dir: Path | None) -> dict[str, list[str]]:
    """Return the findings of each check of a bundle by its name: its files, and with cases its scores.

    Raises:
        InputError: if voxtune.json is damaged, or none of the cases is on record.
    """
    checks = {f"files, those of the export: {len(read_record(folder)['files'])}": list(check_files(folder))}
    if data_dir is not None:
        from trainable.bundle.rescore import check_scores

        checks |= check_scores(folder, data_dir)
    return checks
