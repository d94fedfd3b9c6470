"""Why a case may have a low Dice, as far as its truth and the scores of other recipes tell."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from trainable.core.brats import REGIONS, labels_to_regions
from trainable.core.errors import InputError
from trainable.data.cache import open_case

if TYPE_CHECKING:  # it imports torch, and a report does without it
    from trainable.evaluation.metrics import Scores

LOW = 0.5  # Dice of a region below which a cause is looked for
SMALL_ML = 1.0  # a few voxels at the border of a smaller region change its Dice much
CLEARLY = 0.05  # difference of mean Dice that is told


def truth_ml(cache: Path, case: str) -> dict[str, float] | None:
    """Return the volume of each region in a cached case's truth, in mL; None if the case is not in the cache."""
    try:
        opened = open_case(cache, case)
    except InputError:
        return None
    voxel = abs(float(np.linalg.det(opened.affine[:3, :3]))) / 1000
    masks = labels_to_regions(np.asarray(opened.label))
    return {region: float(mask.sum()) * voxel for region, mask in zip(REGIONS, masks, strict=True)}


def likely_cause(scores: Scores, truth: Mapping[str, float] | None, elsewhere: Mapping[str, float]) -> str:
    """Return why a case may have a low Dice, in a few words; "" if nothing tells.

    Args:
        scores: of the case.
        truth: what truth_ml returns.
        elsewhere: the mean Dice of the case by other recipes, by their label.
    """
    causes = [cause for region in REGIONS if (cause := cause_of_region(region, scores[f"dice_{region}"], truth))]
    if elsewhere:
        label, best = max(elsewhere.items(), key=lambda item: item[1])
        if best > scores["dice_mean"] + CLEARLY:
            causes.append(f"{label} has {best:.3f} here")
        elif scores["dice_mean"] < LOW:
            causes.append("low by all recipes shown")
    return "; ".join(causes)


def cause_of_region(region: str, dice: float, truth: Mapping[str, float] | None) -> str:
    """Return why a region of a case may have a low Dice; "" if its Dice is not low, or nothing tells."""
    if dice >= LOW:
        return ""
    if truth is None:
        return f"{region} is missed, or predicted where the truth has none" if dice == 0 else ""
    if truth[region] == 0:
        return f"no {region} in the truth, but some was predicted: Dice 0"
    if dice == 0:
        return f"{region} of {truth[region]:.2g} mL is missed"
    return f"{region} is small: {truth[region]:.2g} mL" if truth[region] < SMALL_ML else ""
