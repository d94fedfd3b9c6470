"""Validation: scores of whole cases."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch

from trainable.core.brats import Labels
from trainable.core.config import TrainConfig
from trainable.data.cache import CachedCase, open_case
from trainable.evaluation.inference import predict_label
from trainable.evaluation.metrics import Scores, dice_scores, score_case, voxel_spacing


def validate(
    network: torch.nn.Module,
    config: TrainConfig,
    folder: Path,
    names: Iterable[str],
    *,
    full: bool = False,
    on_case: Callable[[CachedCase, Labels], None] = lambda case, prediction: None,
) -> dict[str, Scores]:
    """Predict these cached cases as whole volumes; returns their scores: {case: {dice_WT: ..., ...}}.

    Args:
        folder: the cache.
        names: of the cases.
        full: all scores of score_case, not only Dice.
        on_case: called with each case and its prediction, uint8 (D, H, W).
    """
    scores, device = {}, next(network.parameters()).device
    for name in names:
        case = open_case(folder, name)
        prediction = predict_label(network, case.image, case.mean, case.std, config)
        if full:
            outside = math.prod(case.full_shape) - case.label.size
            scores[name] = score_case(
                prediction, case.label, spacing=voxel_spacing(case.affine), outside_voxels=outside
            )
        else:
            maps = (torch.from_numpy(np.array(labels)).to(device) for labels in (prediction, case.label))
            scores[name] = dice_scores(*maps)
        on_case(case, prediction)
    return scores
