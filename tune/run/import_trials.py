"""Imports the trials of a run into another Optuna study: into a changed space, or as the start of a new sweep."""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from optuna.trial import FrozenTrial, TrialState, create_trial

from trainable.core.errors import InputError
from trainable.core.logger import logger
from trainable.core.options import option_names, to_dict
from trainable.training.epoch_result import EndReason
from trainable.training.training_dir import BEST
from tune.run.results import Run, TrialResult, read_run, resolve_checkpoint
from tune.search.asha import RungDecision, rung_value
from tune.search.journal import Journal, read_trials
from tune.search.trial_progress import Progress, rung_decisions, with_decision
from tune.spec.run_record import DEFAULT_STUDY_NAME
from tune.spec.sweep_config import RULE_OF_OLDER_RUNS, SweepConfig
from tune.spec.sweep_file import load_sweep_config

KEPT_RULE = ("audit", *RULE_OF_OLDER_RUNS)  # of `early_stopping:`: a study decides on all its trials by the same
ENDED = (TrialState.COMPLETE, TrialState.PRUNED)
OUTSIDE_ATTRS = ("outside", "recipe", "told")  # the attributes of a trial that is not in its study's space


@dataclass(frozen=True)
class Candidate:
    """A trial of a run, which may be imported into another Optuna study.

    frozen: as it ended, or as it is if it was interrupted. params: its params in the other study; None if it is outside
    that study's space or unwanted there. reason: why, if params is None.
    """

    number: int
    frozen: FrozenTrial
    params: dict[str, Any] | None
    reason: str = ""


def change_space(run: Run, file: str, overrides: Sequence[str]) -> SweepConfig:
    """Return the config with which a run goes on in the space of another YAML.

    All sections are those of the other YAML, except for `record:` and, in `train:`, the options that are no recipe. If
    that YAML has gpu: auto, or no gpu, the run's number stays.

    If the space, a fixed recipe option, the type of searcher or the number of GPUs per trial differs, the trials are
    imported into a new Optuna study of the same journal, under the same numbers: Optuna forbids changed choices, its
    TPE no longer samples an option of changed range jointly with the others, each searcher needs trials reported in its
    own way, and a study has one number of GPUs per trial. The old study counts until the caller writes the returned
    config to study.yaml, which names the study that counts.

    Else the study goes on, and with it KEPT_RULE, rank_by and protect_default of the run.

    Args:
        file: the other YAML, or the name of a shipped one.
        overrides: `section.key=value` texts that change the other YAML.

    Raises:
        InputError: if the other YAML is wrong, or changes what scores mean.
    """
    old, other = run.config, load_sweep_config(file, overrides)
    if other.resources.gpu == "auto":
        logger.info(f"resources.gpu: auto stays {old.resources.gpu:g}, as measured at launch")
    if other.resources.gpu in ("auto", None):
        other = other.with_gpu(old.resources.gpu_share)
    if changed := differences(old, other, hashes=False):
        raise InputError(f"{file}: {'; '.join(changed)}: scores could not be compared; launch a new sweep with it")
    own = {name: value for name, value in old.train.items() if name not in option_names(role="recipe")}
    recipe = {name: value for name, value in other.train.items() if name in option_names(role="recipe")}
    new = other.with_train(own | recipe).with_record(**old.record.to_dict())
    if not (what := what_differs(old, new)):
        rule = {name: getattr(old.early_stopping, name) for name in KEPT_RULE}
        for name, value in rule.items():
            if (asked := getattr(new.early_stopping, name)) != value:
                logger.info(f"early_stopping.{name} stays {value}, by which trials were decided so far, not {asked}")
        kept = {
            "early_stopping": new.early_stopping.model_copy(update=rule),
            "objective": new.objective.model_copy(update={"rank_by": old.objective.rank_by}),
            "protect_default": old.protect_default,
        }
        new = new.model_copy(update=kept)
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


def what_differs(old: SweepConfig, new: SweepConfig) -> str:
    """Return what of a config needs a new study, in words; "" if the study can go on."""
    if new.space.without_priors() != old.space.without_priors():
        return "space"
    if new.searcher.type != old.searcher.type:
        return "searcher"
    return "number of GPUs per trial" if new.resources.all_gpus != old.resources.all_gpus else ""


def outside_attrs(run: Run, candidate: Candidate) -> dict[str, Any]:
    """Return the attributes of a trial of `run` outside the space: why, and all that restores it in a later space."""
    frozen = candidate.frozen
    outcome = {"state": frozen.state.name, "values": frozen.values, "constraints": frozen.constraints}
    recipe = to_dict(run.recipe(run.trial(candidate.number)))
    return {"outside": candidate.reason, "recipe": recipe, "told": outcome}


def restore_outcome(frozen: FrozenTrial) -> FrozenTrial:
    """Return a trial as it ended.

    One that is stored as outside its study's space gets its own state and values again; it has no params.
    """
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


def with_rung_values(frozen: FrozenTrial, kind: Literal["best", "recent"]) -> FrozenTrial:
    """Return a trial whose values at rungs are of this kind, see rung_value, as far as its scores are known."""
    scores, changed = frozen.intermediate_values, copy.copy(frozen)
    for epoch, decided in rung_decisions(frozen.user_attrs).items():
        if not any(at <= epoch for at in scores):
            continue
        value = rung_value(scores, epoch, kind)
        if value != decided.value:  # what was needed was of the other kind
            rungs = with_decision(changed.user_attrs, epoch, RungDecision(value, decided.decision, decided.kept))
            changed.user_attrs = {**changed.user_attrs, "rungs": rungs}
    return changed


def with_gpu_seconds(frozen: FrozenTrial, before: SweepConfig, now: SweepConfig) -> FrozenTrial:
    """Return a trial that keeps its GPU seconds where trials take another number of GPUs than in its own study."""
    if before.resources.all_gpus == now.resources.all_gpus:
        return frozen
    progress, changed = Progress.from_attrs(frozen.user_attrs), copy.copy(frozen)
    progress = replace(progress, gpu_seconds=progress.all_gpu_seconds(before))
    changed.user_attrs = {**frozen.user_attrs, "progress": progress.to_attrs()}
    return changed


def next_name(name: str) -> str:
    """Return the name of the study after one of this name: voxtune, voxtune-2, voxtune-3, ..."""
    return f"{DEFAULT_STUDY_NAME}-{int(name.removeprefix(DEFAULT_STUDY_NAME).removeprefix('-') or 1) + 1}"


def warm_start(journal: Journal, folders: Sequence[Path]) -> None:
    """Import the complete and stopped trials of earlier runs that are in the new sweep's space; print how many.

    A trial that several of the runs have is imported once. Imported trials count for the searcher, the rungs and the
    winner, but not for study.trials.

    Args:
        journal: of the new sweep.
        folders: of the earlier runs.

    Raises:
        InputError: if a folder is no run, or if the scores of a run mean something else.
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
    """Return where a trial ran first, as text: the folder of that run, and the number in it."""
    return trial.imported_from or f"{run.folder.resolve()} trial {trial.number}"


def candidates_of(run: Run, config: SweepConfig, known: Collection[str] = ()) -> list[Candidate]:
    """Return each trial of a run as a Candidate for a study of another config.

    It has no params if it is outside that config's space or known, or if it ran out of memory with a smaller share of a
    GPU than it would have there.

    Args:
        run: whose trials are read.
        config: of the other study.
        known: the sources, see source_of, of trials that are not imported again.
    """
    candidates = []
    for stored in read_trials(run.folder, run.config.record.study):
        number, result = stored.number, run.trial(stored.number)
        frozen = with_rung_values(restore_outcome(stored), config.early_stopping.value)
        frozen = with_gpu_seconds(frozen, run.config, config)
        try:
            if source_of(run, result) in known:
                raise ValueError("it is there already, from another run")
            before, now = run.config.resources.all_gpus, config.resources.all_gpus
            if result.end_reason == EndReason.OUT_OF_MEMORY and before < now:
                raise ValueError(f"it ran out of memory with {before:g} of a GPU, here it would have {now:g}")
            candidates.append(Candidate(number, frozen, config.space.encode_recipe(to_dict(run.recipe(result)))))
        except ValueError as error:
            candidates.append(Candidate(number, frozen, None, str(error)))
    return candidates


def summary(candidates: Sequence[Candidate]) -> str:
    """Return how many of the candidates are imported, and why each of the rest is not."""
    imported = sum(candidate.params is not None for candidate in candidates)
    left_out = [candidate for candidate in candidates if candidate.params is None]
    reasons = [f"\n  not trial {candidate.number}: {candidate.reason}" for candidate in left_out]
    return f"{imported} of {len(candidates)} trials" + "".join(reasons)


def differences(one: SweepConfig, other: SweepConfig, *, hashes: bool) -> list[str]:
    """Return how two configs differ in what the meaning of a score or of a rung depends on; empty if they do not.

    The texts say "here" of `one` and "there" of `other`.

    Args:
        hashes: compare the hashes of data and split instead of the seed that the split comes from.
    """
    here, there = comparability_key(one), comparability_key(other)
    ignored = {"study.seed"} if hashes else {"record.data", "record.split"}
    names = [name for name in here if name not in ignored and here[name] != there[name]]
    return [f"{name} is {there[name]} there, {here[name]} here" for name in names]


def comparability_key(config: SweepConfig) -> dict[str, Any]:
    """Return all values that the meaning of a score or of a rung depends on, by their place in study.yaml.

    Of `early_stopping:` these are the epochs of the rungs, not who is stopped there.
    """
    stopping = config.early_stopping.model_dump(exclude=set(KEPT_RULE))
    return {
        "study.metric": config.objective.metric,
        "study.seed": config.seed,
        **{f"early_stopping.{name}": value for name, value in stopping.items()},
        **{f"train.{name}": config.fixed(name) for name in sorted(option_names(compared="value"))},
        **{f"record.{name}": getattr(config.record, name) for name in ("data", "split")},
    }


def checkpoint_if_present(run: Run, number: int) -> str | None:
    """Return the folder or URI of a trial's last checkpoint.

    None if the trial has none, or if the folder has no best_model.pth any more; a URI is not checked.
    """
    path = run.trial(number).checkpoint
    if not path:
        return None
    folder = resolve_checkpoint(run.storage, path)
    return folder if "://" in folder or (Path(folder) / BEST).is_file() else None
