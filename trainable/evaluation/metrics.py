"""Scores of one case and their mean: Dice, HD95, sensitivity, specificity of each region.

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

WORST_HD95 = 373.1287  # mm, the diagonal of a BraTS volume: the challenge's value if one mask is empty

Scores = dict[str, float]


def voxel_spacing(affine: NDArray[np.float64]) -> tuple[float, float, float]:
    """Return the size of a voxel along each axis of the array, in mm, from a NIfTI affine (4, 4)."""
    x, y, z = np.linalg.norm(affine[:3, :3], axis=0).tolist()
    return x, y, z


def dice(prediction: Bools, truth: Bools) -> float:
    """Return 2 |A and B| / (|A| + |B|) in [0, 1] of masks of one shape; 1 if both are empty, 0 if just one is."""
    total = int(prediction.sum()) + int(truth.sum())
    return 2 * int((prediction & truth).sum()) / total if total else 1.0


def dice_scores(prediction: Tensor, truth: Tensor) -> Scores:
    """Return dice_WT, dice_TC, dice_ET and dice_mean of two uint8 label maps (D, H, W), computed on their device."""
    counts = []
    for labels in REGION_LABELS.values():
        of_region = torch.tensor(labels, dtype=torch.uint8, device=truth.device)
        a, b = torch.isin(prediction, of_region), torch.isin(truth, of_region)
        counts.append(torch.stack([(a & b).sum(), a.sum() + b.sum()]))
    dices = [2 * hit / total if total else 1.0 for hit, total in torch.stack(counts).tolist()]
    return {
        f"dice_{name}": score for name, score in zip((*REGIONS, "mean"), [*dices, float(np.mean(dices))], strict=True)
    }


def sensitivity(prediction: Bools, truth: Bools) -> float:
    """Return the share of the truth's voxels that were predicted, in [0, 1]; 1 if the truth has none."""
    positive = int(truth.sum())
    return int((prediction & truth).sum()) / positive if positive else 1.0


def specificity(prediction: Bools, truth: Bools, outside_voxels: int = 0) -> float:
    """Return the share of the voxels outside the truth that were not predicted, in [0, 1]; 1 if no voxel is outside.

    Args:
        outside_voxels: number of voxels of the full volume that are not in these arrays: background in both masks.
    """
    negative = truth.size - int(truth.sum()) + outside_voxels
    return 1 - int((prediction & ~truth).sum()) / negative if negative else 1.0


def hd95(prediction: Bools, truth: Bools, spacing: Sequence[float] = (1, 1, 1)) -> float:
    """Return the 95th percentile of the Hausdorff distance in mm between two masks (D, H, W).

    That is the 95th percentile of the distances from each surface voxel of one mask to the nearest surface voxel of the
    other mask, computed in both directions, of which the larger one counts. It is 0 if both masks are empty, and
    373.1287 if just one is, as in the BraTS challenge.

    Args:
        spacing: size of a voxel along D, H and W in mm.
    """
    if not prediction.any() or not truth.any():
        return 0.0 if prediction.any() == truth.any() else WORST_HD95
    box = ndimage.find_objects((prediction | truth).astype(np.uint8))[0]  # the distances depend only on its content
    masks = [mask[box] for mask in (prediction, truth)]
    surfaces = [mask & ~ndimage.binary_erosion(mask) for mask in masks]
    distances = [ndimage.distance_transform_edt(~surface, sampling=spacing) for surface in surfaces]
    to_truth = np.percentile(distances[1][surfaces[0]], 95)
    to_prediction = np.percentile(distances[0][surfaces[1]], 95)
    return float(max(to_truth, to_prediction))


def score_case(
    prediction: NDArray[np.integer],
    truth: NDArray[np.integer],
    *,
    spacing: Sequence[float] = (1, 1, 1),
    outside_voxels: int = 0,
) -> Scores:
    """Return all scores of one case: those of dice_scores, and per region hd95_* in mm, sensitivity_*, specificity_*.

    Args:
        prediction, truth: label maps (D, H, W) of 0, 1, 2, 4.
        spacing: size of a voxel along D, H and W in mm.
        outside_voxels: see `specificity`.
    """
    scores = dice_scores(torch.from_numpy(prediction.astype(np.uint8)), torch.from_numpy(truth.astype(np.uint8)))
    pairs = list(zip(REGIONS, labels_to_regions(prediction), labels_to_regions(truth), strict=True))
    scores |= {f"hd95_{region}": hd95(a, b, spacing) for region, a, b in pairs}
    scores |= {f"sensitivity_{region}": sensitivity(a, b) for region, a, b in pairs}
    scores |= {f"specificity_{region}": specificity(a, b, outside_voxels) for region, a, b in pairs}
    return scores


def mean_scores(cases: Iterable[Mapping[str, float]]) -> Scores:
    """Return the mean over cases of each score, {} if there are no cases; all cases must have the same scores."""
    cases = list(cases)
    return {name: float(np.mean([case[name] for case in cases])) for name in cases[0]} if cases else {}
