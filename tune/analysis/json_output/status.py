"""`voxtune status RUN --json`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tune.analysis.json_output.document import Document
from tune.analysis.json_output.trial import TrialItem
from tune.analysis.outlook import outlook
from tune.analysis.trial_rows import trial_times
from tune.confirmation.status import confirmation_text
from tune.run.effort import measure_effort
from tune.run.events import read_events, waits_for
from tune.run.results import Run


class EffortItem(Document):
    """What the sweep has cost so far, without imported trials."""

    elapsed_seconds: float | None = Field(description="Time in which a driver was running; null if not recorded.")
    trial_seconds: float = Field(description="Training time, summed over trials.")
    gpu_hours: float = Field(description="GPU hours of the trials; 0 on a CPU.")
    stopped_seconds: float = Field(description="Of trial_seconds, in trials that early stopping ended.")
    failed_seconds: float = Field(description="Of trial_seconds, in trials that failed, diverged or ran out of memory.")
    epochs: int = Field(description="Epochs that were trained.")
    saved_epochs: int = Field(description="Epochs that early stopping has saved.")


class GainItem(Document):
    """What another 8 trials are expected to add to the best score."""

    mean: float = Field(description="On average.")
    low: float = Field(description="In 1 of 10 cases it is less.")
    high: float = Field(description="In 1 of 10 cases it is more.")


class StatusOutput(Document):
    """A sweep and its trials."""

    schema_: Literal["voxtune/status/1"] = Field("voxtune/status/1", alias="schema", description="Name and version.")
    run: str = Field(description="Folder of the sweep.")
    state: Literal["running", "interrupted", "ended"] = Field(
        description="running: a process drives it; interrupted: none does and there is more to do; ended: nothing is."
    )
    metric: str = Field(description="Score by which trials are compared.")
    epochs_per_trial: int = Field(description="Epochs of a whole training.")
    trials_asked: int = Field(description="study.trials.")
    trials_left: int = Field(description="Number of trials still to be started.")
    counts: dict[str, int] = Field(description="Number of trials that were not imported, by status.")
    imported: int = Field(description="Number of trials imported from other runs.")
    best: int | None = Field(description="Number of the best trial; null while none has a score.")
    confirmation: str = Field(description='Whether the winner is confirmed, in words; "" while there is none.')
    effort: EffortItem = Field(description="What it has cost.")
    waits_for: str = Field(description='What trials wait for now and who holds it, in words; "" if they do not wait.')
    trials_since_best: int = Field(description="Trials that have ended since the best one did.")
    expected_gain: GainItem | None = Field(description="Of another 8 trials; null while it is not known.")
    winner_at_edge: list[str] = Field(description="Options at an end of whose range the winner is.")
    trials: list[TrialItem] = Field(description="All trials, by number.")


def status_output(run: Run) -> StatusOutput:
    """Return the status of a run."""
    events = read_events(run.dir.events)
    effort, times = measure_effort(run), trial_times(events)
    ahead = outlook(run)
    statuses = [trial.status for trial in run.own_trials]
    return StatusOutput(
        run=str(run.folder),
        state="running" if run.driven else "interrupted" if run.unfinished else "ended",
        metric=run.config.objective.score,
        epochs_per_trial=run.config.fixed("epochs"),
        trials_asked=run.config.budget.trials,
        trials_left=run.trials_left,
        counts={status: statuses.count(status) for status in sorted(set(statuses))},
        imported=len(run.trials) - len(run.own_trials),
        best=run.ranking[0].number if run.ranking else None,
        confirmation=confirmation_text(run)[0],
        effort=EffortItem(
            elapsed_seconds=effort.elapsed,
            **{name: getattr(effort, name) for name in EffortItem.model_fields if name != "elapsed_seconds"},
        ),
        waits_for=waits_for(events) if run.driven else "",
        trials_since_best=ahead.since,
        expected_gain=None if ahead.gain is None else GainItem(**vars(ahead.gain)),
        winner_at_edge=list(ahead.edges),
        trials=[TrialItem.from_trial(run, trial, times.get(trial.number)) for trial in run.trials],
    )
