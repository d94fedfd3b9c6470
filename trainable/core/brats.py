"""Definitions of BraTS: modalities, labels, and the regions that are scored."""

from __future__ import annotations

from functools import reduce
from operator import or_
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # torch takes seconds to import, and commands that only read a run do not need it
    from torch import Tensor

MODALITIES = ("flair", "t1", "t1ce", "t2")
REGIONS = ("WT", "TC", "ET")  # whole tumour, tumour core, enhancing tumour
REGION_LABELS = {"WT": (1, 2, 4), "TC": (1, 4), "ET": (4,)}

Bools = NDArray[np.bool_]
Labels = NDArray[np.uint8]


def labels_to_regions(label: NDArray[np.integer]) -> Bools:
    """Return the masks of WT, TC and ET, bool (3, ...), of labels 0, 1, 2, 4 of any shape."""
    return np.stack([np.isin(label, REGION_LABELS[region]) for region in REGIONS])


def labels_to_regions_torch(label: Tensor) -> Tensor:
    """Return the masks of WT, TC and ET, bool (..., 3, D, H, W), of labels 0, 1, 2, 4, uint8 (..., D, H, W)."""
    import torch

    masks = [reduce(or_, [label == value for value in values]) for values in REGION_LABELS.values()]
    return torch.stack(masks, -4)


def regions_to_labels(regions: Tensor) -> Tensor:
    """Return the labels 0, 1, 2, 4, uint8 (D, H, W), of masks of WT, TC and ET, bool (3, D, H, W).

    The regions are nested by definition: a voxel of ET is also TC and WT, and one of TC also WT, even if a network
    predicts otherwise.
    """
    import torch

    wt, tc, et = regions
    return torch.where(et, 4, torch.where(tc, 1, 2 * wt.int())).to(torch.uint8)
