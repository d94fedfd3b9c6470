"""Trials taken over from one study into another: into a changed space, or as the start of a new sweep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from trainable import checkpoint
from trainable.config import InputError
from trainable.options import fields_of_role, plain
from tune.journal import Journal, progress_of, read_trials
from tune.results import Run, place_in, read_run
from tune.study import STUDY, StudyConfig
from tune.study_file import load_study

ENDED = (TrialState.COMPLETE, TrialState.PRUNED)
# Options of the protocol that the hashes of data and split stand for.
HASHED = {"skip_bad_cases", "split_file", "val_fraction", "test_fraction", "folds", "fold", "seed"}


@dataclass(frozen=True)
class Offer:
    """A trial, its params in the other study, or why it has none there."""

    trial: FrozenTrial
    params: dict[str, Any] | None
    reason: str = ""


def change_space(run: Run, file: str, overrides: Sequence[str]) -> StudyConfig:
    """The study of a run with the space, the searcher, the budgets and the fixed part of the recipe of another YAML.

    Where the space differs its trials go into a new Optuna study of the same journal, under the same numbers: Optuna
    keeps a study's choices for ever, and its TPE no longer draws an option whose range has changed together with the
    others. The caller writes study.yaml, which names the study that counts; until then nothing has changed.

    Raises:
        InputError: where the other YAML changes what scores mean.
    """
    old, given = run.study, load_study(file, overrides)
    if changed := differences(old, given, hashes=False):
        raise InputError(f"{file}: {'; '.join(changed)}: scores could not be compared; launch a new sweep with it")
    own = {name: value for name, value in old.train.items() if name not in fields_of_role("recipe")}
    recipe = {name: value for name, value in given.train.items() if name in fields_of_role("recipe")}
    new = given.with_train(own | recipe).with_record(**old.record)
    if new.space == old.space:
        print(f"the space is that of {run.folder} already: goes on with the same study")
        return new
    new = new.with_record(study=next_name(old.name))
    offers = offers_of(run, new)
    journal = Journal(run.folder, new, anew=True)
    for offer in offers:
        journal.take_over(offer.trial, offer.params, {} if offer.params else {"outside": offer.reason})
    print(f"the space has changed: the new study {new.name} takes over {summary(offers)}")
    return new


def next_name(name: str) -> str:
    """voxtune, voxtune-2, voxtune-3, ..."""
    return f"{STUDY}-{int(name.removeprefix(STUDY).removeprefix('-') or 1) + 1}"


def warm_start(journal: Journal, folders: Sequence[Path]) -> None:
    """Let a new sweep begin with what earlier runs have found out.

    Their ended trials in its space count for the searcher, the rungs and the winner, not for its number of trials.

    Raises:
        InputError: where the scores of a run mean something else.
    """
    study = journal.study_config
    for folder in folders:
        run = read_run(folder)
        if changed := differences(study, run.study, hashes=True):
            raise InputError(f"--warm_start {folder}: {'; '.join(changed)}: its scores cannot be compared with these")
        offers = [offer for offer in offers_of(run, study) if offer.trial.state in ENDED]
        for offer in (offer for offer in offers if offer.params is not None):
            number = offer.trial.number
            source = f"{run.folder.name} trial {number}"
            progress = {**progress_of(offer.trial.user_attrs), "checkpoint": kept(run, number)}
            extra = {"source": source, "seed": run.trial(number).seed, "progress": progress}
            journal.take_over(offer.trial, offer.params, extra)
        print(f"warm start from {folder}: takes over {summary(offers)}")


def offers_of(run: Run, study: StudyConfig) -> list[Offer]:
    """Each trial of a run, with its params in the space of another study where it lies in it."""
    offers = []
    for trial in read_trials(run.folder, run.study.name):
        try:
            offers.append(Offer(trial, study.space.params_of(plain(run.recipe(run.trial(trial.number))))))
        except ValueError as error:
            offers.append(Offer(trial, None, str(error)))
    return offers


def summary(offers: Sequence[Offer]) -> str:
    """How many trials are taken, and why others are not."""
    taken = sum(offer.params is not None for offer in offers)
    reasons = [f"\n  not trial {offer.trial.number}: {offer.reason}" for offer in offers if offer.params is None]
    return f"{taken} of {len(offers)} trials" + "".join(reasons)


def differences(one: StudyConfig, other: StudyConfig, *, hashes: bool) -> list[str]:
    """In what two studies differ that the meaning of a score or of a rung depends on.

    hashes: compare the hashes of data and split, and not the seed that the split comes from.
    """
    here, there = meaning(one), meaning(other)
    ignored = {"study.seed"} if hashes else {"record.data", "record.split"}
    names = [name for name in here if name not in ignored and here[name] != there[name]]
    return [f"{name} is {there[name]} there, {here[name]} here" for name in names]


def meaning(study: StudyConfig) -> dict[str, Any]:
    """All of a study that the meaning of a score or of a rung depends on, by its place in study.yaml."""
    protocol = {*fields_of_role("protocol"), "pretrained"} - HASHED
    return {
        "study.metric": study.study.metric,
        "study.seed": study.study.seed,
        **{f"early_stopping.{name}": value for name, value in study.early_stopping.model_dump().items()},
        **{f"train.{name}": study.option(name) for name in sorted(protocol)},
        **{f"record.{name}": study.record.get(name) for name in ("data", "split")},
    }


def kept(run: Run, number: int) -> str | None:
    """The whole path of a trial's best model where that is still on disk."""
    path = run.trial(number).checkpoint
    place = place_in(run.storage, path) if path else ""
    return place if "://" in place or (Path(place) / checkpoint.BEST).is_file() else None
