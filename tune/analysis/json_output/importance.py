"""`voxtune importance RUN --json`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Literal, Self

from pydantic import Field

from tune.analysis.importance import Importances, OptionImportance
from tune.analysis.json_output.document import Document
from tune.run.results import Run


class TriesItem(Document):
    """How often one value of an option, or one third of its range, was tried."""

    label: str = Field(description="The value, or the third of the range.")
    tries: int = Field(description="Number of trials.")
    standing: float | None = Field(
        description="Mean share of the other trials that these beat, at the last rung both reached; null if unknown."
    )
    best: float | None = Field(description="Highest score of one that trained to its end; null without one.")


class EdgeItem(Document):
    """The winner is at an end of the range, or the best quarter of the trials piles up there."""

    side: Literal["low", "high"] = Field(description="Which end.")
    value: float | None = Field(description="Value of the winner; null if it is not at this end.")
    piled: list[float] | None = Field(
        description="Lowest and highest value of the best trials that pile up at this end; null if they do not."
    )
    wider: dict[str, Any] | list[dict[str, Any]] = Field(
        description="Entry of `space:` with a range that goes on there."
    )


class OptionItem(Document):
    """What the trials tell of an option."""

    name: str = Field(description="Name of the option.")
    verdict: Literal["matters", "hardly matters", "too few trials"] = Field(description="What may be said of it.")
    share: float | None = Field(
        description="Share of the differences between trials that it explains, 0 to 1; null with too few trials."
    )
    low: float | None = Field(description="Lower end of the share's interval; null likewise.")
    high: float | None = Field(description="Upper end; null likewise.")
    trials: int = Field(description="Number of compared trials in which it is active.")
    when: str = Field(description='When it is active, in words; "" if always.')
    tries: list[TriesItem] = Field(description="How often each value or third of the range was tried.")
    never_tried: list[str] = Field(description="Labels of what was never tried.")
    good: list[Any] | None = Field(
        description="Of a number, low and high end of the middle 80 % of the best quarter of trials; of a choice, the "
        "value that these have most. Null with too few trials."
    )
    winner: Any = Field(description="Value of the winner; null if it is inactive there, or no trial has finished.")
    edge: EdgeItem | None = Field(description="Set if good trials are at an end of the range.")

    @classmethod
    def from_option(cls, option: OptionImportance) -> Self:
        """Return the item of an option."""
        values = asdict(option) | {"good": None if option.good is None else list(option.good)}
        if option.edge and option.edge.piled:
            values["edge"]["piled"] = list(option.edge.piled)
        return cls(**values, never_tried=option.never_tried)


class ImportanceOutput(Document):
    """Which options explain how well trials did."""

    schema_: Literal["voxtune/importance/1"] = Field(
        "voxtune/importance/1", alias="schema", description="Name and version."
    )
    run: str = Field(description="Folder of the sweep.")
    trials: int = Field(description="Number of trials that were compared.")
    left_out: dict[str, int] = Field(description="Number of the others, by status.")
    confidence: float = Field(description="Of the intervals.")
    enough: bool = Field(description="Whether there are enough trials to say anything.")
    options: list[OptionItem] = Field(description="First those that matter, then the others, each by falling share.")


def importance_output(run: Run, found: Importances) -> ImportanceOutput:
    """Return the importances of a run's options."""
    return ImportanceOutput(
        run=str(run.folder),
        trials=found.trials,
        left_out=found.left_out,
        confidence=found.confidence,
        enough=found.enough,
        options=[OptionItem.from_option(option) for option in found.options],
    )
