"""The trials of a run as a table: one row per trial, of plain values. `voxtune trials` and `run.trials()` give it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from trainable.core.brats import REGIONS
from tune.analysis.table_files import Row
from tune.analysis.trial_detail import reason
from tune.run.events import Event, EventKind, read_events
from tune.run.results import Run, TrialResult
from tune.search.asha import rung_epochs
from tune.spec.sweep_config import SweepConfig

RUNG_FIELDS = ("value", "needed", "decision")
# What each column means, for docs/json.md; <epoch> stands for each rung, <option> for each searched option.
COLUMN_MEANINGS = {
    "number": "number of the trial, from 0",
    "status": "complete, stopped early, out of patience, out of memory, not finite, failed, running, ...",
    "end_reason": "why the training ended by itself: epochs, patience, non_finite, oom, or empty",
    "reason": "why the trial ended, in words",
    "score": "highest validated score",
    "late_score": "mean score of the last quarter of a training's validations, see study.rank_by",
    "best_epoch": "epoch of that score, 0 without one",
    "epoch": "last reported epoch, 0 before it",
    "state": "Optuna's: COMPLETE, PRUNED, FAIL, RUNNING",
    "dice_<region>": "Dice of WT, TC and ET at the best epoch",
    "rung_<epoch>_value": "score by which it was compared at that rung",
    "rung_<epoch>_needed": "lowest value with which the trial went on; empty if there was none to compare with",
    "rung_<epoch>_decision": "STOP, CONTINUE or PAUSE",
    "stop_epoch": "rung at which early stopping stopped the trial, or would have",
    "kept": "why a trial went on that would have been stopped: default or audit",
    "seconds": "training time over all attempts",
    "gpu_hours": "GPU hours, 0 on a CPU",
    "cost": "the second metric, if the sweep has one",
    "seed": "seed of the trial",
    "checkpoint": "its last checkpoint, below the run's storage or as a whole path",
    "error": "what made it fail",
    "imported_from": "run and number under which an imported trial ran first",
    "started": "when it began, UTC in ISO 8601",
    "ended": "when it ended",
    "params_<option>": "value of a searched option, empty if it is inactive; in CSV a list is JSON",
}


@dataclass(frozen=True)
class TrialTimes:
    """When a trial began, and when it ended, as UTC in ISO 8601; None if the run's events do not tell."""

    started: str | None = None
    ended: str | None = None


def trial_columns(config: SweepConfig) -> list[str]:
    """Return the columns of the table, which depend only on what was requested."""
    return [
        *("number", "status", "end_reason", "reason", "score", "late_score", "best_epoch", "epoch", "state"),
        *(f"dice_{region}" for region in REGIONS),
        *(f"rung_{epoch}_{name}" for epoch in rung_epochs(config) for name in RUNG_FIELDS),
        *("stop_epoch", "kept", "seconds", "gpu_hours", "cost", "seed", "checkpoint", "error", "imported_from"),
        *("started", "ended"),
        *(f"params_{parameter.name}" for parameter in config.space.parameters),
    ]


def trial_rows(run: Run) -> list[Row]:
    """Return a row per trial with all of trial_columns; what a trial lacks is None, in texts ""."""
    columns, times = trial_columns(run.config), trial_times(read_events(run.dir.events))
    rows = (trial_row(run, trial, times.get(trial.number, TrialTimes())) for trial in run.trials)
    return [{name: row.get(name) for name in columns} for row in rows]


def trial_row(run: Run, trial: TrialResult, times: TrialTimes) -> Row:
    """Return a trial as a row, without the columns that it lacks."""
    fields = ("number", "status", "end_reason", "score", "late_score", "best_epoch", "epoch", "stop_epoch", "kept")
    return {
        **{
            name: getattr(trial, name)
            for name in (*fields, "seconds", "cost", "seed", "checkpoint", "error", "imported_from")
        },
        "end_reason": str(trial.end_reason),
        "reason": reason(run, trial),
        "state": trial.state.name,
        "gpu_hours": trial.gpu_hours,
        "started": times.started,
        "ended": times.ended,
        **{f"dice_{region}": score for region, score in trial.dice.items()},
        **{
            f"rung_{epoch}_{name}": getattr(decided, name)
            for epoch, decided in trial.rungs.items()
            for name in RUNG_FIELDS
        },
        **{f"params_{name}": value for name, value in trial.values.items()},
    }


def trial_times(events: Sequence[Event]) -> dict[int, TrialTimes]:
    """Return when each trial began first and ended last, by number."""
    started, ended = dict[int, str](), dict[int, str]()
    for event in events:
        if event.trial is None:
            continue
        if event.kind == EventKind.TRIAL_STARTED:
            started.setdefault(event.trial, iso_time(event.time))
            ended.pop(event.trial, None)
        elif event.kind == EventKind.TRIAL_ENDED:
            ended[event.trial] = iso_time(event.time)
    return {number: TrialTimes(time, ended.get(number)) for number, time in started.items()}


def iso_time(seconds: float) -> str:
    """Return a time in seconds since 1970 as UTC in ISO 8601, to the second: 2026-09-21T14:13:20Z."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
