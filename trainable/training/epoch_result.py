"""What one epoch of a training did, and why a training ends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from trainable.core.brats import REGIONS

if TYPE_CHECKING:  # it imports torch, and what only reads a run does without it
    from trainable.evaluation.metrics import Scores

Pictures = dict[str, NDArray[np.uint8]]
Row = dict[str, float | int | str]  # a line of metrics.csv


class EndReason(StrEnum):
    """Why a training ended by itself; in rows, checkpoints and the journal as plain text."""

    NONE = ""  # it goes on
    EPOCHS = "epochs"
    PATIENCE = "patience"
    NON_FINITE = "non_finite"
    OUT_OF_MEMORY = "oom"


@dataclass(frozen=True)
class EpochStats:
    """Statistics of an epoch, under the names of metrics.csv.

    Losses are means over the patches of micro-batches with finite losses, grad_norm is the mean over the steps that
    were not skipped, steps their number; each mean is NaN if there are none. Times are in seconds: epoch_time of
    training, avg_batch_time per micro-batch, val_time None without validation. data_wait_share is the
    part of epoch_time, from 0 to 1, that was spent waiting for data. Memory is in MiB, 0 on a CPU.
    """

    avg_total_loss: float
    avg_base_loss: float
    avg_dice_loss: float
    grad_norm: float
    steps: float
    lr: float
    epoch_time: float
    avg_batch_time: float
    patches_per_second: float
    data_wait_share: float
    avg_gpu_memory: float
    max_gpu_memory: float
    val_time: float | None = None

    def row(self) -> dict[str, float]:
        """The statistics by name; val_time only if the epoch was validated."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class EpochResult:
    """What one epoch did.

    epoch: its number, from 1. val: mean scores over the validation cases, None if the epoch was not validated.
    best_score, best_epoch: the best validated epoch so far, 0 and 0 before one. note: a non-finite end in words, else
    "". checkpoints: the folder of the training's checkpoints. pictures: RGB uint8 (height, width, 3) of the first
    validation cases, by name. case_scores: of each validation case, by name; val is their mean. Both are empty if the
    epoch was not validated.
    """

    epoch: int
    stats: EpochStats
    val: Scores | None
    best_score: float
    best_epoch: int
    end_reason: EndReason
    checkpoints: Path
    note: str = ""
    pictures: Pictures = field(default_factory=dict)
    case_scores: Mapping[str, Scores] = field(default_factory=dict)

    def row(self) -> Row:
        """The result as flat plain values: a line of metrics.csv, a report to a sweep.

        The scores of val are named val_NAME, and are left out if the epoch was not validated. note, checkpoints,
        pictures and case_scores are always left out.
        """
        val = {f"val_{name}": value for name, value in (self.val or {}).items()}
        best: Row = {"best_score": self.best_score, "best_epoch": self.best_epoch}
        return {"epoch": self.epoch, **val, **best, "end_reason": self.end_reason.value, **self.stats.row()}


def row_columns() -> list[str]:
    """Return the names in the row of a validated epoch, in their order."""
    val = [f"val_dice_{name}" for name in (*REGIONS, "mean")]
    return ["epoch", *val, "best_score", "best_epoch", "end_reason", *(field.name for field in fields(EpochStats))]
