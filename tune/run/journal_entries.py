"""The entries of a run's journal in their order: what was recorded when, which Optuna's trials do not tell."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from tune.run.results import Run
from tune.search.journal_file import CREATE_TRIAL, SET_USER_ATTR
from tune.search.optuna_compat import trial_id
from tune.search.trial_progress import Progress, rung_decisions


def read_entries(run: Run) -> list[dict[str, Any]]:
    """Return the journal's entries on the trials of the run's study, each with the trial's number added."""
    backend = JournalFileBackend(str(run.dir.journal))
    study = optuna.load_study(study_name=run.config.record.study, storage=JournalStorage(backend))
    numbers = {trial_id(trial): trial.number for trial in study.get_trials(deepcopy=False)}
    entries, created = [], 0
    for entry in backend.read_logs(0):
        if entry["op_code"] == CREATE_TRIAL:  # Optuna gives ids in the order of these entries
            entry["trial_id"], created = created, created + 1
        if entry.get("trial_id") in numbers:
            entries.append({**entry, "number": numbers[entry["trial_id"]]})
    return entries


@dataclass(frozen=True)
class RecordedReport:
    """A validated or last epoch of a trial. best: the best score so far. last: the trial ended by itself with it."""

    number: int
    epoch: int
    best: float
    last: bool


def reports_in(entries: Sequence[dict[str, Any]]) -> Iterator[RecordedReport]:
    """Yield the reports of all trials in the order in which they came; those of imported trials when these came in.

    Reports before a trial's first validated epoch are left out.
    """
    reached: dict[int, int] = {}
    for entry in entries:
        number = entry["number"]
        attrs = entry.get("user_attr" if entry["op_code"] == SET_USER_ATTR else "user_attrs") or {}
        if "progress" not in attrs:
            continue
        progress = Progress.from_attrs(attrs)
        if entry["op_code"] != SET_USER_ATTR:
            yield from _imported(entry, progress)
        elif progress.epoch > reached.get(number, 0) and progress.best is not None:
            yield RecordedReport(number, progress.epoch, progress.best.score, bool(progress.end_reason))
        reached[number] = progress.epoch


def _imported(entry: dict[str, Any], progress: Progress) -> Iterator[RecordedReport]:
    """Yield the reports of a trial that came in with all its epochs; in a sweep with a cost those at its rungs only."""
    values = {int(epoch): value for epoch, value in (entry.get("intermediate_values") or {}).items()}
    values = values or {epoch: decided.value for epoch, decided in rung_decisions(entry["user_attrs"]).items()}
    best = -1.0
    for epoch in sorted(values):
        best = max(best, values[epoch])
        last = epoch == progress.epoch and bool(progress.end_reason)
        yield RecordedReport(entry["number"], epoch, best, last)
