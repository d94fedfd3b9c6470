"""Imports the trials of a run into another Optuna study: into a changed space, or as the start of a new sweep."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState, create_trial

from trainable.core.errors import InputError
from trainable.core.logger import logger
from trainable.core.options import option_names, to_dict
from trainable.training.epoch_result import EndReason
from trainable.training.training_dir import BEST
from tune.run.results import Run, TrialResult, read_run, resolve_checkpoint
from tune.search.journal import Journal, read_trials
from tune.search.trial_progress import Progress
from tune.spec.run_record import DEFAULT_STUDY_NAME
from tune.spec.sweep_config import SweepConfig
from tune.spec.sweep_file import load_sweep_config

ENDED = (TrialState.COMPLETE, TrialState.PRUNED)
OUTSIDE_ATTRS = ("outside", "recipe", "told")  # the attributes of a trial that is not in its study's space


@dataclass(frozen=True)
class Candidate:
    """A trial that may be imported.

    frozen: the trial as it ended. params: its params in the other study, or None. reason: why it has none there.
    """

    number: int
    frozen: FrozenTrial
    params: dict[str, Any] | None
    reason: str = ""


def change_space(run: Run, file: str, overrides: Sequence[str]) -> SweepConfig:
    """Return the run's config with the space, searcher, budgets and fixed recipe of another YAML.

    If the space or the searcher differs, the trials are imported into a new Optuna study of the same journal, under the
    same numbers: Optuna forbids changed choices, its TPE no longer samples an option with a changed range jointly with
    the others, and each searcher needs trials reported in its own way. The caller writes study.yaml, which names the
    study that counts; until then nothing has changed.

    Raises:
        InputError: if the other YAML changes what scores mean.
    """
    old, other = run.config, load_sweep_config(file, overrides)
    if other.resources.gpu == "auto":
        logger.info(f"resources.gpu: auto stays {old.resources.gpu:g}, as measured at launch")
        other = other.with_gpu(old.resources.gpu_share)
    if changed := differences(old, other, hashes=False):
        raise InputError(f"{file}: {'; '.join(changed)}: scores could not be compared; launch a new sweep with it")
    own = {name: value for name, value in old.train.items() if name not in option_names(role="recipe")}
    recipe = {name: value for name, value in other.train.items() if name in option_names(role="recipe")}
    new = other.with_train(own | recipe).with_record(**old.record.to_dict())
    what = "space" if new.space != old.space else "searcher"
    if what == "searcher" and new.searcher.type == old.searcher.type:
        logger.info(f"the space is that of {run.folder} already: goes on with the same study")
        return new
    new = new.with_record(study=next_name(old.record.study))
    candidates = candidates_of(run, new)
    journal = Journal(run.folder, new, reset=True)
    for candidate in candidates:
        extra = {} if candidate.params else outside_attrs(run, candidate)
        journal.import_trial(candidate.frozen, candidate.params, extra)
    logger.info(f"the {what} has changed: the new study {new.record.study} imports {summary(candidates)}")
    return new


def outside_attrs(run: Run, candidate: Candidate) -> dict[str, Any]:
    """Return the attributes of a trial outside the space: the reason, and all that restores it in a later space."""
    frozen = candidate.frozen
    outcome = {"state": frozen.state.name, "values": frozen.values, "constraints": frozen.constraints}
    recipe = to_dict(run.recipe(run.trial(candidate.number)))
    return {"outside": candidate.reason, "recipe": recipe, "told": outcome}


def restore_outcome(frozen: FrozenTrial) -> FrozenTrial:
    """Return a trial as it ended, also if it is outside the space of the study that it is read from."""
    outcome = frozen.user_attrs.get("told")
    if outcome is None:
        return frozen
    return create_trial(
        state=TrialState[outcome["state"]],
        values=outcome["values"],
        constraints=outcome["constraints"],
        user_attrs={name: value for name, value in frozen.user_attrs.items() if name not in OUTSIDE_ATTRS},
        intermediate_values=frozen.intermediate_values,
    )


def next_name(name: str) -> str:
    """Return the name of the next study: voxtune, voxtune-2, voxtune-3, ..."""
    return f"{DEFAULT_STUDY_NAME}-{int(name.removeprefix(DEFAULT_STUDY_NAME).removeprefix('-') or 1) + 1}"


def warm_start(journal: Journal, folders: Sequence[Path]) -> None:
    """Import the ended trials of earlier runs that are in the space of a new sweep.

    They count for the searcher, the rungs and the winner, but not for the sweep's number of trials.

    Raises:
        InputError: if the scores of a run mean something else.
    """
    config, known = journal.config, set[str]()
    for folder in folders:
        run = read_run(folder)
        if changed := differences(config, run.config, hashes=True):
            raise InputError(f"--warm_start {folder}: {'; '.join(changed)}: its scores cannot be compared with these")
        candidates = [candidate for candidate in candidates_of(run, config, known) if candidate.frozen.state in ENDED]
        for candidate in (candidate for candidate in candidates if candidate.params is not None):
            trial = run.trial(candidate.number)
            progress = Progress.from_attrs(candidate.frozen.user_attrs)
            progress = replace(progress, checkpoint=checkpoint_if_present(run, trial.number))
            known.add(source := source_of(run, trial))
            extra = {"source": source, "seed": trial.seed, "progress": progress.to_attrs()}
            journal.import_trial(candidate.frozen, candidate.params, extra)
        logger.info(f"warm start from {folder}: imports {summary(candidates)}")


def source_of(run: Run, trial: TrialResult) -> str:
    """Return the run and number under which a trial ran first."""
    return trial.imported_from or f"{run.folder.resolve()} trial {trial.number}"


def candidates_of(run: Run, config: SweepConfig, known: Collection[str] = ()) -> list[Candidate]:
    """Return each trial of a run, with its params in the space of another config if it is in that space.

    Args:
        known: the sources of trials that are not imported again.
    """
    candidates = []
    for stored in read_trials(run.folder, run.config.record.study):
        number, result, frozen = stored.number, run.trial(stored.number), restore_outcome(stored)
        try:
            if source_of(run, result) in known:
                raise ValueError("it is there already, from another run")
            before, now = run.config.resources.gpu_share, config.resources.gpu_share
            if result.end_reason == EndReason.OUT_OF_MEMORY and before < now:
                raise ValueError(f"it ran out of memory with {before:g} of a GPU, here it would have {now:g}")
            candidates.append(Candidate(number, frozen, config.space.encode_recipe(to_dict(run.recipe(result)))))
        except ValueError as error:
            candidates.append(Candidate(number, frozen, None, str(error)))
    return candidates


def summary(candidates: Sequence[Candidate]) -> str:
    """Return how many trials are imported, and why others are not."""
    imported = sum(candidate.params is not None for candidate in candidates)
    left_out = [candidate for candidate in candidates if candidate.params is None]
    reasons = [f"\n  not trial {candidate.number}: {candidate.reason}" for candidate in left_out]
    return f"{imported} of {len(candidates)} trials" + "".join(reasons)


def differences(one: SweepConfig, other: SweepConfig, *, hashes: bool) -> list[str]:
    """Return how two configs differ in what the meaning of a score or of a rung depends on.

    Args:
        hashes: compare the hashes of data and split instead of the seed that the split comes from.
    """
    here, there = comparability_key(one), comparability_key(other)
    ignored = {"study.seed"} if hashes else {"record.data", "record.split"}
    names = [name for name in here if name not in ignored and here[name] != there[name]]
    return [f"{name} is {there[name]} there, {here[name]} here" for name in names]


def comparability_key(config: SweepConfig) -> dict[str, Any]:
    """Return all options that the meaning of a score or of a rung depends on, by their place in study.yaml."""
    return {
        "study.metric": config.objective.metric,
        "study.seed": config.seed,
        **{f"early_stopping.{name}": value for name, value in config.early_stopping.model_dump().items()},
        **{f"train.{name}": config.fixed(name) for name in sorted(option_names(compared="value"))},
        **{f"record.{name}": getattr(config.record, name) for name in ("data", "split")},
    }


def checkpoint_if_present(run: Run, number: int) -> str | None:
    """Return the whole path of a trial's checkpoint, or None if its best model is not on disk any more."""
    path = run.trial(number).checkpoint
    folder = resolve_checkpoint(run.storage, path) if path else ""
    return folder if "://" in folder or (Path(folder) / BEST).is_file() else None
