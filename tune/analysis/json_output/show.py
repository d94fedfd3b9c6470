"""`voxtune show RUN N --json`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from tune.analysis.json_output.document import Document
from tune.analysis.json_output.trial import TrialItem
from tune.analysis.trial_detail import TrialDetail
from tune.analysis.trial_rows import iso_time, trial_times
from tune.run.events import read_events
from tune.run.results import Run


class CurvePoint(Document):
    """A validated epoch."""

    epoch: int = Field(description="Its number, from 1.")
    score: float = Field(description="Its score.")


class EventItem(Document):
    """What happened to the trial."""

    time: str = Field(description="UTC in ISO 8601.")
    kind: str = Field(description='"trial_started", "trial_stopped", "trial_ended", ...')
    text: str = Field(description="What happened, in words.")
    host: str = Field(description='Where it started; "" otherwise.')
    gpus: list[int] = Field(description="On which GPUs of that machine.")


class ShowOutput(Document):
    """One trial."""

    schema_: Literal["voxtune/show/1"] = Field("voxtune/show/1", alias="schema", description="Name and version.")
    run: str = Field(description="Folder of the sweep.")
    metric: str = Field(description="Score by which trials are compared.")
    epochs: int = Field(description="Epochs of a whole training.")
    trial: TrialItem = Field(description="The trial.")
    differing: list[str] = Field(description="Searched options that are not as in the default recipe.")
    recipe: dict[str, Any] = Field(description="All its options.")
    default_recipe: dict[str, Any] = Field(description="All options of the default recipe.")
    curve: list[CurvePoint] = Field(description="Score of each validated epoch.")
    files: dict[str, str] = Field(description="Its files that exist, by what they are.")
    log: list[str] = Field(description="The last lines that it has printed.")
    events: list[EventItem] = Field(description="What happened to it, in order; empty in runs of an older version.")


def show_output(run: Run, detail: TrialDetail) -> ShowOutput:
    """Return all that is known of a trial."""
    times = trial_times(read_events(run.dir.events))
    return ShowOutput(
        run=str(run.folder),
        metric=run.config.objective.score,
        epochs=detail.epochs,
        trial=TrialItem.from_trial(run, run.trial(detail.number), times.get(detail.number)),
        differing=list(detail.differing),
        recipe=detail.recipe,
        default_recipe=detail.default,
        curve=[CurvePoint(epoch=epoch, score=score) for epoch, score in detail.curve.items()],
        files=detail.files,
        log=list(detail.log),
        events=[
            EventItem(time=iso_time(e.time), kind=e.kind, text=e.text, host=e.host, gpus=list(e.gpus))
            for e in detail.events
        ],
    )
