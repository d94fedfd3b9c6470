"""A difference of scores in JSON."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Self

from pydantic import Field

from trainable.evaluation.comparison import Comparison
from tune.analysis.json_output.document import Document


class DifferenceItem(Document):
    """A difference of mean scores, with its interval; what cannot be estimated is null."""

    difference: float = Field(description="Mean score of the first less that of the second.")
    low: float | None = Field(description="Lower end of the interval.")
    high: float | None = Field(description="Upper end.")
    probability: float | None = Field(description="That the first is better.")
    more_trainings: int | None = Field(
        description="Trainings to add per recipe (with folds, in each) for a clear result; 0 if it is clear, "
        "null if no number would do, or the difference is that of two models."
    )
    more_cases: int | None = Field(
        description="Cases to add for a clear result; 0 if it is clear, null if no number would do."
    )
    confidence: float = Field(description="Of the interval.")

    @classmethod
    def from_comparison(cls, comparison: Comparison) -> Self:
        """Return the item of a comparison."""
        return cls(**{name: none_if_nan(value) for name, value in asdict(comparison).items()})


def none_if_nan(value: float | None) -> float | None:
    """Return a number, None for NaN."""
    return None if value is None or math.isnan(value) else value
