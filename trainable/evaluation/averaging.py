"""Prediction by several networks together: the mean of their probabilities."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from trainable.cases.case_reader import LoadedCase
from trainable.core.brats import Labels
from trainable.core.config import TrainConfig
from trainable.data.normalise import brain_box, channel_stats
from trainable.evaluation.inference import (
    NonFiniteLogitsError,
    fill_box,
    finite_logits,
    label_of,
    normalised_input,
    predict_label,
)


@dataclass(frozen=True)
class Predictor:
    """A network and how it predicts.

    Attributes:
        name: of its checkpoint, for messages.
        network: on the device that predicts.
        config: of its training; target_shape, overlap, mirror, amp and the post-processing act here.
    """

    name: str
    network: nn.Module
    config: TrainConfig


class AveragedLabels(NamedTuple):
    """Label maps of a volume, uint8 of one shape.

    Attributes:
        label: by the mean of the probabilities.
        of_members: by each network alone, in their order; empty if there is one network only, whose map is `label`.
    """

    label: Labels
    of_members: tuple[Labels, ...]

    def apply(self, change: Callable[[Labels], Labels]) -> AveragedLabels:
        """Return these label maps, each changed by a function."""
        return AveragedLabels(change(self.label), tuple(map(change, self.of_members)))


@torch.inference_mode()
def predict_averaged(
    predictors: Sequence[Predictor], image: NDArray[np.int16], mean: NDArray[np.float32], std: NDArray[np.float32]
) -> AveragedLabels:
    """Return the label maps of a volume that networks predict together, and each of them alone.

    Each network predicts with its own config. A voxel is in a region if the mean of its probabilities, the sigmoids of
    the logits, is above 0.5; the post-processing is that of the first config. On the device there is one volume of
    probabilities, whatever the number of networks. One network predicts as predict_label.

    Args:
        predictors: all on one device; in another order, the result may differ where the mean is 0.5 up to rounding.
        image, mean, std: see predict_label.

    Raises:
        NonFiniteLogitsError: if a logit is not finite; with several networks the message starts with the name of one.
    """
    first = predictors[0]
    if len(predictors) == 1:
        return AveragedLabels(predict_label(first.network, image, mean, std, first.config), ())
    x = normalised_input(image, mean, std, next(first.network.parameters()).device)
    total = torch.zeros((), device=x.device)
    labels = []
    for predictor in predictors:
        try:
            logits = finite_logits(predictor.network, x, predictor.config)
        except NonFiniteLogitsError as error:
            raise NonFiniteLogitsError(f"{predictor.name}: {error}") from None
        labels.append(label_of(logits > 0, predictor.config))
        total = logits.sigmoid_().add_(total)
    return AveragedLabels(label_of(total > len(predictors) / 2, first.config), tuple(labels))


def predict_case_averaged(predictors: Sequence[Predictor], case: LoadedCase) -> AveragedLabels:
    """Return the label maps predicted for a case, see predict_averaged, of its full shape; 0 outside the brain."""
    box = brain_box(case.image)
    mean, std = channel_stats(case.image)
    labels = predict_averaged(predictors, case.image[(slice(None), *box)], mean, std)
    return labels.apply(lambda label: fill_box(label, box, case))
