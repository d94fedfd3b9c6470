"""Trials taken over from one study into another: into a changed space, or as the start of a new sweep."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState, create_trial

from trainable.core.errors import InputError
from trainable.core.options import fields_of_role, to_dict
from trainable.training import checkpoint
from tune.run.results import Run, TrialResult, read_run, resolve_checkpoint
from tune.search.journal import Journal, progress_of, read_trials
from tune.spec.sweep_config import DEFAULT_STUDY_NAME, SweepConfig
from tune.spec.sweep_file import load_sweep_config

ENDED = (TrialState.COMPLETE, TrialState.PRUNED)
OF_OUTSIDE = ("outside", "recipe", "told")  # the attributes of a trial that does not lie in its study's space
# Options of the protocol that the hashes of data and split stand for.
HASHED = {"skip_bad_cases", "split_file", "val_fraction", "test_fraction", "folds", "fold", "seed"}


@dataclass(frozen=True)
class Candidate:
    """A trial of a number as it ended, its params in the other study, or why it has none there."""

    number: int
    trial: FrozenTrial
    params: dict[str, Any] | None
    reason: str = ""


def change_space(run: Run, file: str, overrides: Sequence[str]) -> SweepConfig:
    """The study of a run with the space, the searcher, the budgets and the fixed part of the recipe of another YAML.

    Where the space differs its trials go into a new Optuna study of the same journal, under the same numbers: Optuna
    keeps a study's choices for ever, and its TPE no longer draws an option whose range has changed together with the
    others. So they do where the searcher is another one, since each is told of them otherwise. The caller writes
    study.yaml, which names the study that counts; until then nothing has changed.

    Raises:
        InputError: where the other YAML changes what scores mean.
    """
    old, given = run.config, load_sweep_config(file, overrides)
    if given.resources.gpu == "auto":
        print(f"resources.gpu: auto stays {old.resources.gpu:g}, as measured at launch")
        given = given.with_gpu(old.resources.gpu_share)
    if changed := differences(old, given, hashes=False):
        raise InputError(f"{file}: {'; '.join(changed)}: scores could not be compared; launch a new sweep with it")
    own = {name: value for name, value in old.train.items() if name not in fields_of_role("recipe")}
    recipe = {name: value for name, value in given.train.items() if name in fields_of_role("recipe")}
    new = given.with_train(own | recipe).with_record(**old.record)
    what = "space" if new.space != old.space else "searcher"
    if what == "searcher" and new.searcher.type == old.searcher.type:
        print(f"the space is that of {run.folder} already: goes on with the same study")
        return new
    new = new.with_record(study=next_name(old.name))
    offers = candidates_of(run, new)
    journal = Journal(run.folder, new, reset=True)
    for offer in offers:
        journal.import_trial(offer.trial, offer.params, {} if offer.params else outside_attrs(run, offer))
    print(f"the {what} has changed: the new study {new.name} takes over {summary(offers)}")
    return new


def outside_attrs(run: Run, offer: Candidate) -> dict[str, Any]:
    """The attributes of a trial that does not lie in the space: why, and all that brings it back into another one."""
    trial = offer.trial
    told = {"state": trial.state.name, "values": trial.values, "constraints": trial.constraints}
    return {"outside": offer.reason, "recipe": to_dict(run.recipe(run.trial(offer.number))), "told": told}


def restore_outcome(trial: FrozenTrial) -> FrozenTrial:
    """A trial as it ended, also where it did not lie in the space of the study that it is read from."""
    told = trial.user_attrs.get("told")
    if told is None:
        return trial
    return create_trial(
        state=TrialState[told["state"]],
        values=told["values"],
        constraints=told["constraints"],
        user_attrs={name: value for name, value in trial.user_attrs.items() if name not in OF_OUTSIDE},
        intermediate_values=trial.intermediate_values,
    )


def next_name(name: str) -> str:
    """voxtune, voxtune-2, voxtune-3, ..."""
    return f"{DEFAULT_STUDY_NAME}-{int(name.removeprefix(DEFAULT_STUDY_NAME).removeprefix('-') or 1) + 1}"


def warm_start(journal: Journal, folders: Sequence[Path]) -> None:
    """Let a new sweep begin with what earlier runs have found out.

    Their ended trials in its space count for the searcher, the rungs and the winner, not for its number of trials.

    Raises:
        InputError: where the scores of a run mean something else.
    """
    config, known = journal.config, set[str]()
    for folder in folders:
        run = read_run(folder)
        if changed := differences(config, run.config, hashes=True):
            raise InputError(f"--warm_start {folder}: {'; '.join(changed)}: its scores cannot be compared with these")
        offers = [offer for offer in candidates_of(run, config, known) if offer.trial.state in ENDED]
        for offer in (offer for offer in offers if offer.params is not None):
            trial = run.trial(offer.number)
            progress = {**progress_of(offer.trial.user_attrs), "checkpoint": checkpoint_if_present(run, trial.number)}
            known.add(source := source_of(run, trial))
            journal.import_trial(
                offer.trial, offer.params, {"source": source, "seed": trial.seed, "progress": progress}
            )
        print(f"warm start from {folder}: takes over {summary(offers)}")


def source_of(run: Run, trial: TrialResult) -> str:
    """Where a trial ran first."""
    return trial.imported_from or f"{run.folder.resolve()} trial {trial.number}"


def candidates_of(run: Run, config: SweepConfig, known: Collection[str] = ()) -> list[Candidate]:
    """Each trial of a run, with its params in the space of another study where it lies in it.

    known: the sources of trials that are not taken again.
    """
    offers = []
    for trial in read_trials(run.folder, run.config.name):
        found, told = run.trial(trial.number), restore_outcome(trial)
        try:
            if source_of(run, found) in known:
                raise ValueError("it is there already, from another run")
            had, has = run.config.resources.gpu_share, config.resources.gpu_share
            if found.end_reason == "oom" and had < has:
                raise ValueError(f"it ran out of memory with {had:g} of a GPU, here it would have {has:g}")
            offers.append(Candidate(trial.number, told, config.space.encode_recipe(to_dict(run.recipe(found)))))
        except ValueError as error:
            offers.append(Candidate(trial.number, told, None, str(error)))
    return offers


def summary(offers: Sequence[Candidate]) -> str:
    """How many trials are taken, and why others are not."""
    taken = sum(offer.params is not None for offer in offers)
    reasons = [f"\n  not trial {offer.number}: {offer.reason}" for offer in offers if offer.params is None]
    return f"{taken} of {len(offers)} trials" + "".join(reasons)


def differences(one: SweepConfig, other: SweepConfig, *, hashes: bool) -> list[str]:
    """In what two studies differ that the meaning of a score or of a rung depends on.

    hashes: compare the hashes of data and split, and not the seed that the split comes from.
    """
    here, there = comparability_key(one), comparability_key(other)
    ignored = {"study.seed"} if hashes else {"record.data", "record.split"}
    names = [name for name in here if name not in ignored and here[name] != there[name]]
    return [f"{name} is {there[name]} there, {here[name]} here" for name in names]


def comparability_key(config: SweepConfig) -> dict[str, Any]:
    """All of a study that the meaning of a score or of a rung depends on, by its place in study.yaml."""
    protocol = {*fields_of_role("protocol"), "pretrained"} - HASHED
    return {
        "study.metric": config.objective.metric,
        "study.seed": config.seed,
        **{f"early_stopping.{name}": value for name, value in config.early_stopping.model_dump().items()},
        **{f"train.{name}": config.fixed(name) for name in sorted(protocol)},
        **{f"record.{name}": config.record.get(name) for name in ("data", "split")},
    }


def checkpoint_if_present(run: Run, number: int) -> str | None:
    """The whole path of a trial's best model where that is still on disk."""
    path = run.trial(number).checkpoint
    place = resolve_checkpoint(run.storage, path) if path else ""
    return place if "://" in place or (Path(place) / checkpoint.BEST).is_file() else None
