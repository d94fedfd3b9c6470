"""What BraTS defines: modalities, labels, and the regions that are scored."""

from __future__ import annotations

from functools import reduce
from operator import or_
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # torch takes seconds to import, and what only reads a run does without it
    from torch import Tensor

MODALITIES = ("flair", "t1", "t1ce", "t2")
REGIONS = ("WT", "TC", "ET")  # whole tumour, tumour core, enhancing tumour
REGION_LABELS = {"WT": (1, 2, 4), "TC": (1, 4), "ET": (4,)}

Bools = NDArray[np.bool_]
Labels = NDArray[np.uint8]


def labels_to_regions(label: NDArray[np.integer]) -> Bools:
    """Labels 0, 1, 2, 4 of shape (D, H, W) -> masks of WT, TC and ET, bool (3, D, H, W)."""
    return np.stack([np.isin(label, REGION_LABELS[region]) for region in REGIONS])


def labels_to_regions_torch(label: Tensor) -> Tensor:
    """Labels 0, 1, 2, 4, uint8 (..., D, H, W) -> masks of WT, TC and ET, bool (..., 3, D, H, W), on the same device."""
    import torch

    masks = [reduce(or_, [label == value for value in values]) for values in REGION_LABELS.values()]
    return torch.stack(masks, -4)


def regions_to_labels(regions: Tensor) -> Tensor:
    """Masks of WT, TC and ET, bool (3, D, H, W) -> labels 0, 1, 2, 4, uint8 (D, H, W), on the same device.

    The regions are nested by definition: a voxel of ET is also TC and WT, one of TC also WT, whatever the network says.
    """
    import torch

    wt, tc, et = regions
    return torch.where(et, 4, torch.where(tc, 1, 2 * wt.int())).to(torch.uint8)
