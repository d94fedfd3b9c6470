"""`voxtune compare RUN N N --json` and `voxtune compare RUN RUN2 --json`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from tune.analysis.json_output.difference import DifferenceItem
from tune.analysis.json_output.document import Document
from tune.analysis.json_output.importance import OptionItem
from tune.analysis.json_output.trial import TrialItem
from tune.analysis.run_comparison import RunComparison
from tune.analysis.trial_comparison import TrialComparison
from tune.run.results import Run


class CaseDifferenceItem(Document):
    """The first trial's scores minus another one's, on the validation cases, each at its best epoch."""

    other: int = Field(description="Number of the other trial.")
    cases: int = Field(description="Number of cases that both have scores of.")
    better: int = Field(description="In how many of them the first has the higher mean Dice.")
    worse: int = Field(description="In how many the lower.")
    differences: dict[str, DifferenceItem] = Field(description="By score; only cases are drawn again, not trainings.")


class TrialComparisonItem(Document):
    """Trials of a run side by side."""

    run: str = Field(description="Folder of the sweep.")
    trials: list[TrialItem] = Field(description="The trials, in the order that was asked for.")
    options: dict[str, list[Any]] = Field(description="Searched options that differ: the value in each trial.")
    differences: list[CaseDifferenceItem] = Field(description="Of the first trial to each other with scores per case.")


class MilestoneItem(Document):
    """The runs after the same effort."""

    hours: float = Field(description="GPU hours, or hours of training if a run has no GPU.")
    best: list[float | None] = Field(description="Best score of a finished trial of each run by then; null without.")
    ahead: int | None = Field(description="Place of the run that is ahead; null if none is or it is not known.")


class ComparedRunItem(Document):
    """A run that is compared."""

    run: str = Field(description="Folder of the sweep.")
    hours: float = Field(description="Effort in all.")
    winner: TrialItem | None = Field(description="Its best trial; null while none has a score.")
    importances: list[OptionItem] = Field(description="Of its options, as `voxtune importance` has them.")


class RunComparisonItem(Document):
    """Runs side by side; lists have an item per run, in the order that was asked for."""

    runs: list[ComparedRunItem] = Field(description="The runs.")
    comparable: bool = Field(description="Whether their scores mean the same.")
    meaning: dict[str, list[Any]] = Field(description="What scores depend on and differs; empty if comparable.")
    search: dict[str, list[Any]] = Field(description="What differs in how they searched.")
    on_gpu: bool = Field(description="Whether hours are GPU hours.")
    milestones: list[MilestoneItem] = Field(description="By rising effort, the last at the end of the shortest run.")
    recipes: dict[str, list[Any]] = Field(description="Options in which the winners differ.")


class CompareOutput(Document):
    """Trials of a run, or runs, side by side."""

    schema_: Literal["voxtune/compare/1"] = Field("voxtune/compare/1", alias="schema", description="Name and version.")
    trials: TrialComparisonItem | None = Field(None, description="If trials were compared, else null.")
    runs: RunComparisonItem | None = Field(None, description="If runs were compared, else null.")


def trials_compared(run: Run, found: TrialComparison) -> CompareOutput:
    """Return a comparison of trials of a run."""
    differences = [
        CaseDifferenceItem(
            other=item.other,
            cases=item.cases,
            better=item.better,
            worse=item.worse,
            differences={name: DifferenceItem.from_comparison(of) for name, of in item.differences.items()},
        )
        for item in found.differences
    ]
    return CompareOutput(
        trials=TrialComparisonItem(
            run=str(run.folder),
            trials=[TrialItem.from_trial(run, trial) for trial in found.trials],
            options={name: list(values) for name, values in found.options.items()},
            differences=differences,
        )
    )


def runs_compared(found: RunComparison) -> CompareOutput:
    """Return a comparison of runs."""
    runs = [
        ComparedRunItem(
            run=str(run.folder),
            hours=hours,
            winner=winner and TrialItem.from_trial(run, winner),
            importances=[OptionItem.from_option(option) for option in importances.options],
        )
        for run, hours, winner, importances in zip(
            found.runs, found.hours, found.winners, found.importances, strict=True
        )
    ]
    listed = {
        name: {key: list(values) for key, values in getattr(found, name).items()}
        for name in ("meaning", "search", "recipes")
    }
    milestones = [MilestoneItem(hours=item.hours, best=list(item.best), ahead=item.ahead) for item in found.milestones]
    return CompareOutput(
        runs=RunComparisonItem(
            runs=runs, comparable=found.comparable, on_gpu=found.on_gpu, milestones=milestones, **listed
        )
    )
