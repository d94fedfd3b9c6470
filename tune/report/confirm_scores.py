"""The scores of a confirmation, and what its recipes are called."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from trainable.core.errors import InputError
from trainable.training.case_scores import SCORE_COLUMNS

if TYPE_CHECKING:  # it imports torch, and a report does without it
    from trainable.evaluation.metrics import Scores


@dataclass(frozen=True)
class CaseRow:
    """A row of scores.csv: a case by one training. arm: name of its recipe. part: "val" or "test"."""

    arm: str
    seed: str
    part: str
    case: str
    dice: Scores


def read_case_rows(path: Path) -> list[CaseRow]:
    """Return the rows of a confirmation's scores.csv, the default recipe first; none without a file.

    Raises:
        InputError: if the file is damaged.
    """
    if not path.exists():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [
                CaseRow(row["arm"], row["seed"], row["part"], row["case"], dice_of(row)) for row in csv.DictReader(file)
            ]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: damaged ({error!r}); run `voxtune confirm` again") from None


def dice_of(row: dict[str, str]) -> Scores:
    """Return the scores of a row of a CSV file."""
    return {column: float(row[column]) for column in SCORE_COLUMNS}


def mean_scores(rows: Sequence[CaseRow], part: str) -> dict[str, dict[str, Scores]]:
    """Return the mean score of each case over the trainings of each recipe, by recipe and case."""
    found: dict[str, dict[str, list[list[float]]]] = {}
    for row in rows:
        if row.part == part:
            found.setdefault(row.arm, {}).setdefault(row.case, []).append([row.dice[name] for name in SCORE_COLUMNS])
    return {
        arm: {case: dict(zip(SCORE_COLUMNS, np.mean(of, axis=0).tolist(), strict=True)) for case, of in cases.items()}
        for arm, cases in found.items()
    }


def arm_names(text: str) -> str:
    """Return a text in which the recipe trial_0012 is called trial 12."""
    return re.sub(r"\btrial_0*(\d+)\b", "trial\N{NO-BREAK SPACE}\\1", text)
