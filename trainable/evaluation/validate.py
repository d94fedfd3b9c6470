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
from trainable.evaluation.inference import NonFiniteLogitsError, predict_label
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
    """Predict cached cases as whole volumes with a network; return the scores of each, see score_cases.

    The network is left in eval mode.
    """
    device = next(network.parameters()).device

    def predict(case: CachedCase) -> Labels:
        return predict_label(network, case.image, case.mean, case.std, config)

    return score_cases(predict, folder, names, device=device, full=full, on_case=on_case)


def score_cases(
    predict: Callable[[CachedCase], Labels],
    folder: Path,
    names: Iterable[str],
    *,
    device: torch.device,
    full: bool = False,
    on_case: Callable[[CachedCase, Labels], None] = lambda case, prediction: None,
) -> dict[str, Scores]:
    """Predict cached cases; return the scores of each: {case: {dice_WT: ..., ...}}, {} without names.

    Args:
        predict: returns the label map of a case, uint8 (D, H, W) as the case's label.
        folder: the cache.
        names: of the cases.
        device: where the scores of dice_scores are computed.
        full: return all scores of score_case, not just those of dice_scores.
        on_case: called with each case and its prediction, once that is scored; what it raises ends the validation.

    Raises:
        InputError: if a case is missing in the cache or not whole.
        NonFiniteLogitsError: if a case's logits are not finite; the message starts with the case's name.
    """
    scores = {}
    for name in names:
        case = open_case(folder, name)
        try:
            prediction = predict(case)
        except NonFiniteLogitsError as error:
            raise NonFiniteLogitsError(f"{name}: {error}") from None
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
