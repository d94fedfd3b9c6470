"""What several benchmarks share: epochs that were not trained, and small data."""

from __future__ import annotations

from pathlib import Path

from trainable.core.brats import REGIONS
from trainable.core.config import TrainConfig
from trainable.data.phantom import write_phantoms
from trainable.data.prepare import prepare_data
from trainable.training.epoch_result import EndReason, EpochResult, EpochStats

NO_STATS = EpochStats(*[0.0] * 12)


def scored_epoch(
    epoch: int, score: float, folder: Path, *, best: tuple[float, int], end_reason: EndReason
) -> EpochResult:
    """Return an epoch with this score in every region, without statistics.

    Args:
        folder: of the checkpoints.
        best: best score so far and its epoch.
    """
    scores = {f"dice_{name}": score for name in ("mean", *REGIONS)}
    return EpochResult(epoch, NO_STATS, scores, *best, end_reason, folder)


def prepare_phantoms(data_dir: Path, cache_dir: Path) -> None:
    """Write and prepare 8 phantom cases of 48 x 48 x 40 voxels."""
    write_phantoms(data_dir, cases=8, shape=(48, 48, 40), workers=1)
    prepare_data(TrainConfig(data_dir=data_dir, cache_dir=cache_dir), quiet=True)
