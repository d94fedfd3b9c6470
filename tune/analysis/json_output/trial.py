"""A trial in JSON."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field

from tune.analysis.json_output.document import Document
from tune.analysis.trial_detail import reason
from tune.analysis.trial_rows import TrialTimes
from tune.run.results import Run, TrialResult


class RungItem(Document):
    """What early stopping decided at a rung."""

    epoch: int = Field(description="Epoch of the rung.")
    value: float = Field(description="What it was compared by: its best score up to there, or the mean of its last.")
    needed: float | None = Field(
        description="Lowest value with which the trial went on; null if there was none to compare with."
    )
    among: int = Field(description="Number of other values that it was compared with.")
    decision: Literal["STOP", "CONTINUE", "PAUSE"] = Field(description="What was decided.")
    kept: str = Field(description='Why a trial went on that would have been stopped: "default", "audit" or "".')


class TrialItem(Document):
    """A trial."""

    number: int = Field(description="Number of the trial, from 0.")
    status: str = Field(description='"complete", "stopped early", "running", "failed", ..., as `status` prints it.')
    reason: str = Field(description="Why it ended, or that it has not, in words.")
    score: float | None = Field(description="Highest validated score; null before a validated epoch.")
    late_score: float | None = Field(
        description="Mean score of the last quarter of a training's validations; null before a validated epoch."
    )
    best_epoch: int = Field(description="Epoch of that score; 0 without one.")
    epoch: int = Field(description="Last reported epoch; 0 before it.")
    dice: dict[str, float] = Field(description="Dice by region at the best epoch; empty before a validated epoch.")
    rungs: list[RungItem] = Field(description="Decisions of early stopping, by rising epoch.")
    seconds: float = Field(description="Training time over all attempts, in seconds.")
    gpu_hours: float = Field(description="GPU hours; 0 on a CPU.")
    cost: float | None = Field(description="The second metric; null if the sweep has none.")
    seed: int = Field(description="Seed of the trial.")
    started: str | None = Field(description="When it began, UTC in ISO 8601; null if the run's events do not tell.")
    ended: str | None = Field(description="When it ended; null likewise, or if it has not.")
    checkpoint: str | None = Field(description="Its last checkpoint, below the run's storage or as a whole path.")
    error: str = Field(description='What made it fail, in a line; else "".')
    imported_from: str = Field(description='Run and number under which an imported trial ran first; else "".')
    params: dict[str, Any] = Field(description="Values of the searched options that are active in it.")

    @classmethod
    def from_trial(cls, run: Run, trial: TrialResult, times: TrialTimes | None = None) -> Self:
        """Return a trial of a run; times: when it began and ended, None if unknown."""
        times = times or TrialTimes()
        names = ("number", "status", "score", "late_score", "best_epoch", "epoch", "dice", "seconds", "cost", "seed")
        rungs = [
            RungItem(
                epoch=epoch,
                value=decided.value,
                needed=decided.needed,
                among=decided.among,
                decision=decided.decision,
                kept=decided.kept,
            )
            for epoch, decided in sorted(trial.rungs.items())
        ]
        return cls(
            **{name: getattr(trial, name) for name in (*names, "checkpoint", "error", "imported_from")},
            reason=reason(run, trial),
            rungs=rungs,
            gpu_hours=trial.gpu_hours,
            started=times.started,
            ended=times.ended,
            params=trial.values,
        )
