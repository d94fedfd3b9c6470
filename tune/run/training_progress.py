"""How far a training is, by its metrics.csv."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trainable.training.training_dir import TrainingDir
from trainable.training.training_log import read_rows


@dataclass(frozen=True)
class TrainingProgress:
    """How far a training is.

    epochs: of a whole one. best_score: None before an epoch is validated. seconds: that it has trained.
    """

    name: str
    epochs: int
    epoch: int = 0
    best_score: float | None = None
    best_epoch: int = 0
    seconds: float = 0.0
    end_reason: str = ""


def read_progress(name: str, folder: Path, epochs: int) -> TrainingProgress:
    """Return how far the training in a folder is. name, epochs: for TrainingProgress."""
    rows = read_rows(TrainingDir(folder).metrics)
    if not rows:
        return TrainingProgress(name, epochs)
    last, seconds = rows[-1], sum(float(row.get(kind) or 0) for row in rows for kind in ("epoch_time", "val_time"))
    best_epoch = int(last["best_epoch"])
    score = float(last["best_score"]) if best_epoch else None
    return TrainingProgress(name, epochs, int(last["epoch"]), score, best_epoch, seconds, last["end_reason"])
