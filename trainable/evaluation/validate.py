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
from trainable.evaluation.metrics import Scores, dice_scores, score_case, spacing_of


def validate(
    network: torch.nn.Module,
    config: TrainConfig,
    folder: Path,
    names: Iterable[str],
    *,
    full: bool = False,
    on_case: Callable[[CachedCase, Labels], None] = lambda case, prediction: None,
) -> dict[str, Scores]:
    """Scores of each of these cached cases, predicted whole: {case: {dice_WT: ..., ...}}.

    full: all scores of score_case, not Dice alone. on_case: called with each case and its prediction, uint8 (D, H, W).
    """
    scores, device = {}, next(network.parameters()).device
    for name in names:
        case = open_case(folder, name)
        prediction = predict_label(network, case.image, case.mean, case.std, config)
        if full:
            around = math.prod(case.full_shape) - case.label.size
            scores[name] = score_case(prediction, case.label, spacing=spacing_of(case.affine), outside_voxels=around)
        else:
            scores[name] = dice_scores(
                *(torch.from_numpy(np.array(each)).to(device) for each in (prediction, case.label))
            )
        on_case(case, prediction)
    return scores
