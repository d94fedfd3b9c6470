"""The entries of a run's journal in their order: what was recorded when, which Optuna's trials do not tell."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tune.run.results import Run
from tune.search import journal_file, journal_reader
from tune.search.journal_file import SET_USER_ATTR
from tune.search.trial_progress import Progress, rung_decisions


def read_entries(run: Run, *, earlier: bool = False) -> list[dict[str, Any]]:
    """Return the journal's entries on the trials of the run's study, each with the trial's number added.

    earlier: also those of the studies before it, if the run went on in another space: in a new study the trials of the
        one before have their numbers, but came in all at once.
    """
    studies: dict[int, str] = {}  # names of those that exist, by id
    trials: list[tuple[int, int]] = []  # study and number of each; Optuna gives ids in the order of these entries
    entries, created, counts = [], 0, Counter[int]()  # counts: of the trials of each study
    for entry in journal_reader.read_entries(run.dir.journal):
        match entry["op_code"]:
            case journal_file.CREATE_STUDY if entry["study_name"] not in studies.values():
                studies[created], created = entry["study_name"], created + 1
            case journal_file.DELETE_STUDY:
                studies.pop(entry["study_id"], None)
            case journal_file.CREATE_TRIAL if entry["study_id"] in studies:
                entry["trial_id"] = len(trials)
                trials.append((entry["study_id"], counts[entry["study_id"]]))
                counts[entry["study_id"]] += 1
        if "trial_id" in entry:
            entries.append(entry)
    own = next((study for study, name in studies.items() if name == run.config.record.study), -1)
    wanted = {study for study in studies if study == own or (earlier and study < own)}
    numbers = {index: number for index, (study, number) in enumerate(trials) if study in wanted}
    return [{**entry, "number": numbers[entry["trial_id"]]} for entry in entries if entry["trial_id"] in numbers]


def attrs_in(entry: dict[str, Any]) -> dict[str, Any]:
    """Return the user attributes of a trial that an entry sets."""
    return entry.get("user_attr" if entry["op_code"] == SET_USER_ATTR else "user_attrs") or {}


def scores_in(entry: dict[str, Any]) -> dict[int, float]:
    """Return the scores of validated epochs that an entry tells, by epoch; in a sweep with a cost the last ones."""
    if entry["op_code"] == journal_file.SET_INTERMEDIATE_VALUE:
        return {int(entry["step"]): entry["intermediate_value"]}
    values = {int(epoch): value for epoch, value in (entry.get("intermediate_values") or {}).items()}
    return values or Progress.from_attrs(attrs_in(entry)).recent


@dataclass(frozen=True)
class RecordedReport:
    """A validated or last epoch of a trial.

    best: the best score so far. last: the trial ended by itself with it. score: None if it was not validated, or if the
    trial was imported into a sweep with a cost.
    """

    number: int
    epoch: int
    best: float
    last: bool
    score: float | None


def reports_in(entries: Sequence[dict[str, Any]]) -> Iterator[RecordedReport]:
    """Yield the reports of all trials, each once, in their order; those of imported trials when these came in.

    Reports before a trial's first validated epoch are left out.
    """
    reached, scores = dict[int, int](), defaultdict[int, dict[int, float]](dict)
    for entry in entries:
        number, attrs = entry["number"], attrs_in(entry)
        scores[number] |= scores_in(entry)
        if "progress" not in attrs:
            continue
        progress = Progress.from_attrs(attrs)
        if entry["op_code"] != SET_USER_ATTR:
            reports = _imported(entry, progress, scores[number])
            yield from (report for report in reports if report.epoch > reached.get(number, 0))
        elif progress.epoch > reached.get(number, 0) and progress.best is not None:
            score = scores[number].get(progress.epoch)
            yield RecordedReport(number, progress.epoch, progress.best.score, bool(progress.end_reason), score)
        reached[number] = max(progress.epoch, reached.get(number, 0))


def _imported(entry: dict[str, Any], progress: Progress, scores: dict[int, float]) -> Iterator[RecordedReport]:
    """Yield the reports of a trial that came in with all its epochs; in a sweep with a cost those at its rungs only."""
    values = {int(epoch): value for epoch, value in (entry.get("intermediate_values") or {}).items()}
    values = values or {epoch: decided.value for epoch, decided in rung_decisions(entry["user_attrs"]).items()}
    best = -1.0
    for epoch in sorted(values):
        best = max(best, values[epoch])
        last = epoch == progress.epoch and bool(progress.end_reason)
        yield RecordedReport(entry["number"], epoch, best, last, scores.get(epoch))
