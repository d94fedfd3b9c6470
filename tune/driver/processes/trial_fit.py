"""How a trial is trained on cases, with its checkpoints for the storage of the sweep."""

from __future__ import annotations

from collections.abc import Callable

from trainable.core.config import TrainConfig
from trainable.data.prepare import Data
from trainable.training.epoch_result import EpochResult
from trainable.training.loop import fit
from trainable.training.step_progress import OnProgress

Fit = Callable[[TrainConfig, Data, Callable[[EpochResult], None], OnProgress], EpochResult]


def fit_to_storage(
    config: TrainConfig,
    data: Data,
    on_epoch_end: Callable[[EpochResult], None],
    on_progress: OnProgress | None = None,
) -> EpochResult:
    """Call fit with one file of checkpoints per epoch, since Ray copies it to the sweep's storage at once."""
    return fit(config, data, on_epoch_end, on_progress=on_progress, flush=False, one_file=True)
