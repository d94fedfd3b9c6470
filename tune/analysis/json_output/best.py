"""`voxtune best RUN --json`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from trainable.core.options import to_dict
from tune.analysis.json_output.document import Document
from tune.analysis.json_output.trial import TrialItem
from tune.analysis.trial_rows import trial_times
from tune.run.events import read_events
from tune.run.results import Run


class BestOutput(Document):
    """The best trials of a sweep, and the winner's recipe."""

    schema_: Literal["voxtune/best/1"] = Field("voxtune/best/1", alias="schema", description="Name and version.")
    run: str = Field(description="Folder of the sweep.")
    metric: str = Field(description="Score by which trials are compared.")
    winner: int = Field(description="Number of the winner, the first of `trials`.")
    trials: list[TrialItem] = Field(
        description="The best trials: those that trained to their end, as study.rank_by says, then the others by score."
    )
    pareto_front: list[int] | None = Field(
        description="Numbers of the trials that rank above every cheaper one; null if the sweep has no cost."
    )
    recipe: dict[str, Any] = Field(description="All options of the winner.")
    default_recipe: dict[str, Any] = Field(description="All options of the default recipe, that of trial 0.")


def best_output(run: Run, top: int) -> BestOutput:
    """Return the `top` best trials of a run.

    Raises:
        InputError: if no trial has a score yet.
    """
    winner, times = run.best(), trial_times(read_events(run.dir.events))
    return BestOutput(
        run=str(run.folder),
        metric=run.config.objective.score,
        winner=winner.number,
        trials=[TrialItem.from_trial(run, trial, times.get(trial.number)) for trial in run.ranking[:top]],
        pareto_front=[trial.number for trial in run.pareto_front()] if run.config.objective.cost else None,
        recipe=to_dict(run.recipe(winner)),
        default_recipe=to_dict(run.config.base_config()),
    )
