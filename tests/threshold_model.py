"""A model without training that several tests share: a real network whose weights compare intensities with limits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from trainable.core.config import TrainConfig
from trainable.data.prepare import Data
from trainable.model.unet3d import UNet3D
from trainable.training.checkpoint import save_checkpoint
from trainable.training.state import TrainingState
from trainable.training.training_dir import TrainingDir

LIMITS = (2.5, 2.5, 3.0)  # of phantoms: regions are found, with islands of noise around them


def compare_with(network: UNet3D, limits: Sequence[float]) -> None:
    """Set the weights so that WT is where FLAIR is high in its window, TC and ET where T1ce is; limits: of z-scores."""
    with torch.no_grad():
        for weights in network.parameters():
            if weights.ndim == 5:
                weights.zero_()
        width = network.encoder[0].conv1.weight.shape[0]
        for channel, modality in ((0, 0), (1, 2)):  # through the uppermost level
            network.encoder[0].conv1.weight[channel, modality, 1, 1, 1] = 1
            network.encoder[0].conv2.weight[channel, channel, 1, 1, 1] = 1
            network.decoder[0].conv1.weight[channel, width + channel, 1, 1, 1] = 1
            network.decoder[0].conv2.weight[channel, channel, 1, 1, 1] = 1
        for region, channel in enumerate((0, 1, 1)):
            network.heads[0].weight[region, channel] = 1
            network.heads[0].bias[region] = -limits[region]


def threshold_model(folder: Path, data: Data, limits: Sequence[float] = LIMITS, **options: Any) -> TrainingDir:
    """Write the model as a training that ended after epoch 3 has left it, and return its folder."""
    given = {"depth": 2, "base_channels": 4, "target_shape": (48, 48, 40), "device": "cpu", "epochs": 3}
    config = TrainConfig.model_validate({"output_dir": folder, "cache_dir": data.folder, **given, **options})
    training = TrainingState(config)
    compare_with(training.network, limits)
    training.epoch = training.best_epoch = 3
    paths = TrainingDir(folder)
    save_checkpoint(training.state(data, {"epoch": 3}), paths.best, paths.latest)
    return paths
