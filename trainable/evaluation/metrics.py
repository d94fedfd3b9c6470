"""Scores of one case and their mean: regions from labels, Dice, HD95, sensitivity, specificity.

Everything is computed per case over whole volumes; batches of patches are never scored.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from trainable.core.brats import REGION_LABELS, REGIONS, Bools, labels_to_regions

WORST_HD95 = 373.1287  # mm, the diagonal of a BraTS volume: the challenge's value where one mask is empty

Scores = dict[str, float]


def spacing_of(affine: NDArray[np.float64]) -> tuple[float, float, float]:
    """Size in mm of a voxel along each axis of the array, from a NIfTI affine (4, 4)."""
    x, y, z = np.linalg.norm(affine[:3, :3], axis=0).tolist()
    return x, y, z


def dice(prediction: Bools, truth: Bools) -> float:
    """2 |A and B| / (|A| + |B|) in [0, 1]; 1 where both are empty, 0 where one is."""
    total = int(prediction.sum()) + int(truth.sum())
    return 2 * int((prediction & truth).sum()) / total if total else 1.0


def dice_scores(prediction: Tensor, truth: Tensor) -> Scores:
    """dice_WT, dice_TC, dice_ET and dice_mean of two uint8 label maps (D, H, W), computed on their device."""
    counts = []
    for labels in REGION_LABELS.values():
        wanted = torch.tensor(labels, dtype=torch.uint8, device=truth.device)
        a, b = torch.isin(prediction, wanted), torch.isin(truth, wanted)
        counts.append(torch.stack([(a & b).sum(), a.sum() + b.sum()]))
    found = [2 * hit / total if total else 1.0 for hit, total in torch.stack(counts).tolist()]
    return {
        f"dice_{name}": score for name, score in zip((*REGIONS, "mean"), [*found, float(np.mean(found))], strict=True)
    }


def sensitivity(prediction: Bools, truth: Bools) -> float:
    """Share of the truth's voxels that were found, in [0, 1]; 1 where there are none to find."""
    positive = int(truth.sum())
    return int((prediction & truth).sum()) / positive if positive else 1.0


def specificity(prediction: Bools, truth: Bools, outside_voxels: int = 0) -> float:
    """Share of the voxels outside the truth that were left alone, in [0, 1]; 1 where there are none.

    around: background voxels of the full volume beside these arrays, in truth and prediction alike.
    """
    negative = truth.size - int(truth.sum()) + outside_voxels
    return 1 - int((prediction & ~truth).sum()) / negative if negative else 1.0


def hd95(prediction: Bools, truth: Bools, spacing: Sequence[float] = (1, 1, 1)) -> float:
    """95th percentile of the Hausdorff distance in mm: the larger of both directions, between surface voxels.

    0 where both masks are empty, 373.1287 where one is, as in the BraTS challenge.
    """
    if not prediction.any() or not truth.any():
        return 0.0 if prediction.any() == truth.any() else WORST_HD95
    box = ndimage.find_objects((prediction | truth).astype(np.uint8))[0]  # distances need nothing outside it
    masks = [mask[box] for mask in (prediction, truth)]
    surfaces = [mask & ~ndimage.binary_erosion(mask) for mask in masks]
    distances = [ndimage.distance_transform_edt(~surface, sampling=spacing) for surface in surfaces]
    there = np.percentile(distances[1][surfaces[0]], 95)
    back = np.percentile(distances[0][surfaces[1]], 95)
    return float(max(there, back))


def score_case(
    prediction: NDArray[np.integer],
    truth: NDArray[np.integer],
    *,
    spacing: Sequence[float] = (1, 1, 1),
    outside_voxels: int = 0,
) -> Scores:
    """All scores of one case from its two label maps (D, H, W): those of dice_scores, hd95_* in mm, sensitivity_* and
    specificity_*, which counts `around` voxels outside the arrays.
    """
    scores = dice_scores(torch.from_numpy(prediction.astype(np.uint8)), torch.from_numpy(truth.astype(np.uint8)))
    pairs = list(zip(REGIONS, labels_to_regions(prediction), labels_to_regions(truth), strict=True))
    scores |= {f"hd95_{region}": hd95(a, b, spacing) for region, a, b in pairs}
    scores |= {f"sensitivity_{region}": sensitivity(a, b) for region, a, b in pairs}
    scores |= {f"specificity_{region}": specificity(a, b, outside_voxels) for region, a, b in pairs}
    return scores


def mean_scores(cases: Iterable[Mapping[str, float]]) -> Scores:
    """The mean over cases of each score."""
    cases = list(cases)
    return {name: float(np.mean([case[name] for case in cases])) for name in cases[0]} if cases else {}
