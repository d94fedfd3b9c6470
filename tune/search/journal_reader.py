"""Reads the trials of a journal as Optuna's JournalStorage does, in a quarter of its time: it copies none of them."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from optuna.distributions import BaseDistribution, check_distribution_compatibility, json_to_distribution
from optuna.trial import FrozenTrial, TrialState

from tune.search.journal_file import (
    CREATE_STUDY,
    CREATE_TRIAL,
    DELETE_STUDY,
    SET_INTERMEDIATE_VALUE,
    SET_PARAM,
    SET_STATE,
    SET_SYSTEM_ATTR,
    SET_USER_ATTR,
    complete_lines,
)
from tune.search.optuna_compat import trial_id

OF_A_TRIAL = (SET_PARAM, SET_STATE, SET_INTERMEDIATE_VALUE, SET_USER_ATTR, SET_SYSTEM_ATTR)
Entry = dict[str, Any]
distribution_of = lru_cache(maxsize=1024)(json_to_distribution)  # a journal repeats few texts many times


def load_trials(path: Path, study_name: str) -> list[FrozenTrial]:
    """Return the trials of a study, those that are enqueued only included; none if the journal lacks the study.

    Half a line at the end, which a process may be writing, is left out.

    Raises:
        ValueError, KeyError, TypeError: the journal is damaged.
    """
    replay, collects = Replay(), gc.isenabled()
    gc.disable()  # what is read stays: looking for garbage in it takes a third of the time
    try:
        for entry in read_entries(path):
            replay.apply(entry)
    finally:
        if collects:
            gc.enable()
    return replay.trials_of(study_name)


def read_entries(path: Path) -> Iterator[Entry]:
    """Yield the entries of a journal; as for Optuna, a last line that is not JSON does not count."""
    lines = complete_lines(path.read_bytes()).splitlines()
    for number, line in enumerate(lines, 1):
        try:
            yield json.loads(line)
        except ValueError:
            if number < len(lines):
                raise


class Replay:
    """What the entries so far have made: studies by id, each with its trials, and all trials by id."""

    def __init__(self) -> None:
        self.names: dict[int, str] = {}  # of the studies that are not deleted
        self.studies: list[list[FrozenTrial]] = []
        self.trials: list[FrozenTrial] = []
        self.study_of: list[int] = []  # by id of a trial
        self.first_distributions: list[dict[str, BaseDistribution]] = []  # by id of a study

    def trials_of(self, study_name: str) -> list[FrozenTrial]:
        """Return the trials of a study; none if there is no such study."""
        return next((self.studies[index] for index, name in self.names.items() if name == study_name), [])

    def apply(self, entry: Entry) -> None:
        """Apply one entry; attributes of the study, which no reader needs, are left out."""
        code = entry["op_code"]
        if code in OF_A_TRIAL:
            self.change_trial(code, entry)
        elif code == CREATE_TRIAL and entry["study_id"] in self.names:
            self.add_trial(entry)
        elif code == CREATE_STUDY and entry["study_name"] not in self.names.values():
            self.names[len(self.studies)] = entry["study_name"]
            self.studies.append([])
            self.first_distributions.append({})
        elif code == DELETE_STUDY:
            self.names.pop(entry["study_id"], None)

    def add_trial(self, entry: Entry) -> None:
        """Add a trial, a whole one if it was imported."""
        study = entry["study_id"]
        distributions = {name: distribution_of(text) for name, text in entry.get("distributions", {}).items()}
        params = entry.get("params", {})
        trial = FrozenTrial(
            trial_id=len(self.trials),
            number=len(self.studies[study]),
            state=TrialState(entry.get("state", TrialState.RUNNING)),
            params={name: distributions[name].to_external_repr(value) for name, value in params.items()},
            distributions=distributions,
            user_attrs=entry.get("user_attrs", {}),
            system_attrs=entry.get("system_attrs", {}),
            value=entry.get("value"),
            values=entry.get("values"),
            intermediate_values={int(step): value for step, value in entry.get("intermediate_values", {}).items()},
            datetime_start=local_time(entry["datetime_start"]),
            datetime_complete=local_time(entry.get("datetime_complete")),
        )
        self.first_distributions[study] |= {**distributions, **self.first_distributions[study]}
        self.studies[study].append(trial)
        self.trials.append(trial)
        self.study_of.append(study)

    def change_trial(self, code: int, entry: Entry) -> None:
        """Change a trial; entries on one that has ended, or that is unknown, do nothing."""
        if entry["trial_id"] >= len(self.trials):
            return
        trial = self.trials[entry["trial_id"]]
        if trial.state.is_finished():
            return
        if code == SET_PARAM:
            self.set_param(trial, entry)
        elif code == SET_STATE:
            set_state(trial, entry)
        elif code == SET_INTERMEDIATE_VALUE:
            trial.intermediate_values[entry["step"]] = entry["intermediate_value"]
        elif code == SET_USER_ATTR:
            trial.user_attrs.update(entry["user_attr"])
        else:
            trial.system_attrs.update(entry["system_attr"])

    def set_param(self, trial: FrozenTrial, entry: Entry) -> None:
        """Set a param, unless the study has drawn it from a distribution of another kind before."""
        name, distribution = entry["param_name"], distribution_of(entry["distribution"])
        first = self.first_distributions[self.study_of[trial_id(trial)]].setdefault(name, distribution)
        try:
            check_distribution_compatibility(first, distribution)
        except ValueError:
            return
        trial.params[name] = distribution.to_external_repr(entry["param_value_internal"])
        trial.distributions[name] = distribution


def set_state(trial: FrozenTrial, entry: Entry) -> None:
    """Set the state of a trial that has not ended, with the time at which it started or ended, and its values."""
    state = TrialState(entry["state"])
    if state == trial.state == TrialState.RUNNING:
        return
    if state == TrialState.RUNNING:
        trial.datetime_start = local_time(entry["datetime_start"])
    if state.is_finished():
        trial.datetime_complete = local_time(entry["datetime_complete"])
    trial.state = state
    if entry["values"] is not None:
        trial.values = entry["values"]


def local_time(text: str | None) -> datetime | None:
    """Return a time of the journal as Optuna has it: in the zone of this machine, which it does not name."""
    return None if text is None else datetime.fromisoformat(text).astimezone().replace(tzinfo=None)
