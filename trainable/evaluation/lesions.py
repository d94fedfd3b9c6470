"""Lesion-wise Dice and HD95 of BraTS 2023, with the adult glioma parameters.

Source of the rules: https://github.com/rachitsaluja/BraTS-2023-Metrics
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from trainable.core.brats import REGIONS, Bools, labels_to_regions
from trainable.evaluation.metrics import WORST_HD95, dice, hd95

DILATION_STEPS = 3  # of the dilation that joins truth lesions and finds what was predicted for them
DILATION = ndimage.generate_binary_structure(3, 2)  # one step: to faces and edges, not to corners
NEIGHBOURS = ndimage.generate_binary_structure(3, 3)  # 26 neighbours: faces, edges and corners
MAX_IGNORED_VOLUME = 50.0  # mm^3: a truth lesion of this volume or less is not scored


def lesion_wise(prediction: Bools, truth: Bools, spacing: Sequence[float] = (1, 1, 1)) -> tuple[float, float]:
    """Return the mean over lesions of Dice in [0, 1] and of HD95 in mm, for the masks (D, H, W) of one region.

    Truth voxels form one lesion if their dilations touch. A lesion is compared, undilated, with the whole of every
    predicted component that reaches into its dilation; one component may match several lesions. A missed lesion, and a
    component of any size that matches no lesion, count as Dice 0 and the worst HD95. A truth lesion of 50 mm^3 or less
    is not counted, but matches components as larger ones do. With nothing to count: Dice 1, HD95 0.

    These are the rules of github.com/rachitsaluja/BraTS-2023-Metrics. In that code the worst HD95 is 374 and surfaces
    are meshes weighted by area; here the worst is 373.1287 and surfaces are voxels, as in `hd95`.

    Args:
        spacing: size of a voxel along D, H and W in mm.
    """
    either = prediction | truth
    if not either.any():
        return 1.0, 0.0
    # No margin is needed: dilations that touch outside the box of their voxels also touch inside it.
    box = ndimage.find_objects(either.astype(np.uint8))[0]
    prediction, truth = prediction[box], truth[box]
    zones, lesions = ndimage.label(ndimage.binary_dilation(truth, DILATION, DILATION_STEPS), NEIGHBOURS)
    parts, components = ndimage.label(prediction, NEIGHBOURS)
    matches = np.zeros((lesions + 1, components + 1), bool)  # lesion, component; 0 is background
    matches[zones[prediction], parts[prediction]] = True
    volumes = np.bincount(zones[truth], minlength=lesions + 1) * np.prod(spacing)
    scores = []
    for number in np.flatnonzero(volumes > MAX_IGNORED_VOLUME):
        lesion, matched = truth & (zones == number), matches[number][parts]
        scores.append((dice(matched, lesion), hd95(matched, lesion, spacing)))
    unmatched = components - int(matches[1:].any(axis=0).sum())
    scores += [(0.0, WORST_HD95)] * unmatched
    mean_dice, mean_hd95 = np.mean(scores, axis=0).tolist() if scores else (1.0, 0.0)
    return mean_dice, mean_hd95


def score_lesions(
    prediction: NDArray[np.integer], truth: NDArray[np.integer], *, spacing: Sequence[float] = (1, 1, 1)
) -> dict[str, float]:
    """Return `lesion_wise` of each region of one case: lesion_dice_WT, _TC, _ET, then lesion_hd95_* in mm.

    Args:
        prediction, truth: label maps (D, H, W) of 0, 1, 2, 4.
        spacing: size of a voxel along D, H and W in mm.
    """
    pairs = zip(labels_to_regions(prediction), labels_to_regions(truth), strict=True)
    dices, distances = zip(*(lesion_wise(a, b, spacing) for a, b in pairs), strict=True)
    scores = {f"lesion_dice_{region}": value for region, value in zip(REGIONS, dices, strict=True)}
    return scores | {f"lesion_hd95_{region}": value for region, value in zip(REGIONS, distances, strict=True)}
