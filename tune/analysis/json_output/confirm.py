"""`voxtune confirm RUN --json`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Literal, Self

from pydantic import Field

from tune.analysis.json_output.difference import DifferenceItem, none_if_nan
from tune.analysis.json_output.document import Document
from tune.confirmation.report import Confirmation
from tune.confirmation.status import sentence
from tune.confirmation.verdict import Verdict
from tune.run.results import Run


class ArmItem(Document):
    """A recipe that was trained again."""

    name: str = Field(description='"default", "trial 3" or the name of a file.')
    trainings: int = Field(description="Number of trainings that count; on validation cases, of seeds.")
    mean: dict[str, float] = Field(description="Mean score by region and of all; empty before the first training.")
    sd: dict[str, float | None] = Field(description="Deviation between these; null with one.")
    dropped: str = Field(description='Why it left the race; else "".')
    sweep_score: float | None = Field(description="Its score in the sweep; null if it was no trial of it.")
    curse: float | None = Field(description="The sweep's score less the confirmed one.")


class VerdictItem(Document):
    """The best recipe against the default one, on some cases."""

    cases: Literal["validation", "test"] = Field(description="That the scores are of.")
    metric: str = Field(description="The score that decides.")
    winner: str = Field(description='The best recipe but the default; "" without one.')
    verdict: Literal["better", "worse", "not shown"] = Field(description="What the interval shows.")
    words: str = Field(description="The verdict as a sentence.")
    comparisons: dict[str, DifferenceItem] = Field(description="Winner less default, by score; empty without both.")
    arms: list[ArmItem] = Field(description="The default, then the others by falling mean.")

    @classmethod
    def from_verdict(cls, verdict: Verdict) -> Self:
        """Return the item of a verdict."""
        arms = [asdict(arm) for arm in verdict.arms]
        return cls(
            cases=verdict.cases,
            metric=verdict.metric,
            winner=verdict.winner,
            verdict=verdict.comparison.verdict if verdict.comparison else "not shown",
            words=sentence(verdict),
            comparisons={name: DifferenceItem.from_comparison(of) for name, of in verdict.comparisons.items()},
            arms=[ArmItem(**arm | {"sd": {name: none_if_nan(sd) for name, sd in arm["sd"].items()}}) for arm in arms],
        )


class ConfirmOutput(Document):
    """What a confirmation has found so far."""

    schema_: Literal["voxtune/confirm/1"] = Field("voxtune/confirm/1", alias="schema", description="Name and version.")
    run: str = Field(description="Folder of the sweep.")
    winner: int = Field(description="Number of the sweep's best trial.")
    chosen: str = Field(description="The recipe that is to be used.")
    chosen_trial: int | None = Field(description="Its number if it is a trial.")
    reason: str = Field(description="Why it was chosen.")
    confirmed: bool = Field(description="Whether the best recipe is shown to be better than the default.")
    ended: str = Field(description='Why the race ended; "" if it goes on when the command is called again.')
    trainings: int = Field(description="Number of trainings that have begun.")
    seconds: float = Field(description="Their time in all.")
    errors: list[str] = Field(description="Why trainings have no model.")
    validation: VerdictItem = Field(description="On the validation cases, by which the recipe is chosen.")
    test: VerdictItem | None = Field(description="On the test cases, by which nothing is chosen; null until scored.")


def confirm_output(run: Run, found: Confirmation) -> ConfirmOutput:
    """Return what a confirmation of a run has found."""
    return ConfirmOutput(
        run=str(run.folder),
        winner=found.winner,
        chosen=found.val.chosen,
        chosen_trial=found.plan.arm(found.val.chosen).trial,
        reason=found.val.reason,
        confirmed=found.val.confirmed,
        ended=found.race.ended,
        trainings=found.trainings,
        seconds=found.seconds,
        errors=[
            f"{arm}, seed {found.plan.seeds[index]}: {error}" for (arm, index), error in sorted(found.errors.items())
        ],
        validation=VerdictItem.from_verdict(found.val),
        test=None if found.test is None else VerdictItem.from_verdict(found.test),
    )
