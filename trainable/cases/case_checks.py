"""Check the content of a case: its images are four modalities of one brain, and its tumour lies in that brain."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from trainable.cases.case_files import Case, CaseError
from trainable.core.brats import Labels

FEWEST_VALUES = 16  # distinct values of a brain; an 8-bit image has 100 or more
VOXELS_PER_VALUE = 10  # in a volume of few voxels fewer values are enough
LEAST_OVERLAP = 0.98  # Dice of two images' brains; 0.999 within a case of BraTS, 0.92 with another patient's
OVERLAP_SLICES = 32  # that are compared at least, if there are as many
MOST_IN_AIR = 0.01  # of the tumour; 0 in BraTS


def check_images(case: Case, image: NDArray[np.int16]) -> list[str]:
    """Refuse images that cannot be modalities of a brain; return a note if they look like those of several brains.

    Of one brain the images are non-zero in the same voxels, but a scan may cover only a part of it, or be
    skull-stripped on its own, so this is only noted.

    Args:
        image: (4, X, Y, Z), in the order of the case's images, with a background of 0.

    Raises:
        CaseError: for an image with fewer than 16 distinct non-zero values, or two that are the same.
    """
    # as (Z, Y, X), the order in memory, so that slices of z are read fast
    volumes = [channel.T for channel in image]
    for path, volume in zip(case.images, volumes, strict=True):
        count = _distinct_values(volume)
        if count is not None:
            values = f"{count} distinct value{'s' * (count > 1)}"
            raise CaseError(
                f"{case.name}: {path.name} has {values} in the brain; expected {FEWEST_VALUES} or more, as a mask or "
                "an image without contrast is no modality; put the right file there"
            )
    for first, second in combinations(range(len(volumes)), 2):
        if _are_equal(volumes[first], volumes[second]):
            raise CaseError(
                f"{case.name}: {case.images[first].name} and {case.images[second].name} are the same image; expected "
                "one of each modality; put the right file there"
            )
    return _note_of_other_brains(case, volumes)


def check_truth(case: Case, image: NDArray[np.int16], label: Labels) -> None:
    """Refuse a truth of which more than 1 % of the tumour lies where every image is 0.

    Args:
        image: (4, X, Y, Z), with a background of 0.
        label: (X, Y, Z).

    Raises:
        CaseError: with that share.
    """
    tumour = np.flatnonzero(label.T != 0)  # of bool, which is several times faster
    inside = np.zeros(tumour.shape, bool)
    for channel in image:
        inside |= channel.T.reshape(-1)[tumour] != 0
    share = np.count_nonzero(~inside) / max(1, tumour.size)
    if share > MOST_IN_AIR:
        assert case.seg is not None
        raise CaseError(
            f"{case.name}: {case.seg.name} has {share:.1%} of its tumour in the air, where every image is 0; expected "
            f"{MOST_IN_AIR:.0%} at most; it may be flipped, shifted, or of another grid or patient; put the right file "
            "there"
        )


def _distinct_values(volume: NDArray[np.int16]) -> int | None:
    """Return the number of distinct non-zero values of a volume (Z, Y, X) with too few of them; None if it has enough.

    In most volumes the middle slice alone has enough.
    """
    if len(np.unique(volume[len(volume) // 2])) > FEWEST_VALUES:
        return None
    values = volume[volume != 0]
    count = len(np.unique(values))
    return count if count < min(FEWEST_VALUES, values.size // VOXELS_PER_VALUE) else None


def _are_equal(volume: NDArray[np.int16], other: NDArray[np.int16]) -> bool:
    """Return whether two volumes (Z, Y, X) are the same; the middle slice tells most that are not."""
    middle = len(volume) // 2
    return np.array_equal(volume[middle], other[middle]) and np.array_equal(volume, other)


def _note_of_other_brains(case: Case, volumes: Sequence[NDArray[np.int16]]) -> list[str]:
    """Return a note on images whose brain is not that of the image which is most like the others; [] if none is.

    volumes: (Z, Y, X); some slices of each are compared.
    """
    step = max(1, len(volumes[0]) // OVERLAP_SLICES)
    masks = [volume[::step] != 0 for volume in volumes]
    sizes = [int(np.count_nonzero(mask)) for mask in masks]
    overlaps = np.eye(len(masks))
    for first, second in combinations(range(len(masks)), 2):
        both = int(np.count_nonzero(masks[first] & masks[second]))
        overlaps[first, second] = overlaps[second, first] = 2 * both / max(1, sizes[first] + sizes[second])
    typical = overlaps[int(overlaps.sum(axis=0).round(6).argmax())]  # of several as typical the first
    others = [index for index, overlap in enumerate(typical) if overlap < LEAST_OVERLAP]
    if not others:
        return []
    names = " and ".join(case.images[index].name for index in others)
    reference = case.images[int(typical.argmax())]
    return [
        f"{case.name}: {names} may show another brain than {reference.name}: the Dice of their non-zero voxels is "
        f"{typical[others].min():.3f}, expected {LEAST_OVERLAP} or more; of another patient, mirrored, or cut off?"
    ]
