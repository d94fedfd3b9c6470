"""The intensities of an image: its background made 0, its values brought into int16."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from trainable.cases.case_files import CaseError

INT16_MAX = 32767
BACKGROUND_SHARE = 0.25  # of the volume's outer faces that the background has at least
HOT_FACTOR, HOT_PERCENTILE = 4.0, 99.9  # values beyond this multiple of this percentile are clipped
FEWEST_LEVELS = 256

Background = float | Literal["auto"]


def image_to_int16(what: str, voxels: NDArray[Any], background: Background) -> tuple[NDArray[Any], str]:
    """Return voxels whose background is 0 and whose values are whole numbers within int16, and a note.

    An image of such numbers is kept as it is. Any other is scaled by one factor, so that its largest magnitude is
    32767, and rounded; the normalisation to z-scores later undoes the factor.

    Args:
        what: case and file, for messages.
        voxels: (X, Y, Z), real numbers.
        background: the value that becomes 0, by subtraction; "auto": the most frequent one on the outer faces.

    Returns:
        The voxels, in a type of numpy that may be wider than int16; what was clipped, in words, or "".

    Raises:
        CaseError: for NaN or inf, an image that is the same everywhere, a background that is not 0, or an image of
            which scaling leaves fewer than 256 grey levels, and fewer than it had.
    """
    low, high = voxels.min(), voxels.max()
    if not (np.isfinite(low) and np.isfinite(high)):  # with a NaN anywhere the minimum is NaN
        bad = int(np.count_nonzero(~np.isfinite(voxels)))
        raise CaseError(f"{what} has NaN or inf in {bad} voxels; expected finite numbers")
    if low == high:
        raise CaseError(f"{what} is {low} everywhere; expected a brain on a background of 0")
    value, share = background_of(voxels)
    taken = value if background == "auto" else _in_type_of(voxels, background)
    _check_background(what, value, share, taken)
    if taken:
        voxels = _wide(voxels) - _wide(np.asarray(taken))
        low, high = voxels.min(), voxels.max()
    fits = low >= -INT16_MAX - 1 and high <= INT16_MAX
    if fits and (voxels.dtype.kind in "iu" or bool((np.rint(voxels) == voxels).all())):
        return voxels, ""
    return _scaled(what, voxels)


def background_of(voxels: NDArray[Any]) -> tuple[Any, float]:
    """Return the most frequent value on the six outer faces of a volume, and its share of them."""
    # not by np.take, which copies a volume in the memory order of NIfTI
    pairs = [(view[0], view[-1]) for view in (np.moveaxis(voxels, axis, 0) for axis in range(3))]
    faces = np.concatenate([face.ravel() for pair in pairs for face in pair])
    zeros = np.count_nonzero(faces == 0)
    if 2 * zeros >= len(faces):  # sorting would take long, and no other value can be more frequent
        return faces.dtype.type(0), zeros / len(faces)
    values, counts = np.unique(faces, return_counts=True)
    return values[counts.argmax()], float(counts.max() / len(faces))


def _check_background(what: str, value: Any, share: float, taken: Any) -> None:
    """Raise CaseError if a volume's most frequent value on its outer faces is not its background, or not `taken`.

    A brain may touch the faces where a volume is cropped tightly, so the background need not have most of them. A head
    that is not skull-stripped has noise there, in which no value is frequent.
    """
    if share < BACKGROUND_SHARE:
        raise CaseError(
            f"{what} has no constant background: {value}, the most frequent value on its outer faces, has "
            f"{share:.0%} of them; expected a brain without skull on a background of one value; skull-strip the case"
        )
    if value != taken:
        raise CaseError(
            f"{what} has a background of {value}, which has {share:.0%} of its outer faces; expected {taken}, or its "
            f"statistics would be those of air; make it {taken} in the file, or prepare and train with --background "
            f"{value}, or with --background auto if it is another one in each image"
        )


def _in_type_of(voxels: NDArray[Any], value: float) -> Any:
    """Return a value as voxels that were written with it have it: rounded to float32 if they are, or a whole number."""
    if voxels.dtype.kind == "f":
        return voxels.dtype.type(value)
    return int(value) if value.is_integer() else value


def _wide(voxels: NDArray[Any]) -> NDArray[Any]:
    """Return voxels in a type that holds the differences of any two of them."""
    return voxels.astype(np.float64 if voxels.dtype.kind == "f" or voxels.dtype.itemsize == 8 else np.int64)


def _scaled(what: str, voxels: NDArray[Any]) -> tuple[NDArray[Any], str]:
    """Return voxels scaled by one factor to int16 and rounded, and a note on what was clipped before.

    One hot voxel would else leave few grey levels to the brain. Values are clipped that lie beyond HOT_FACTOR times the
    99.9th percentile of the non-zero magnitudes; where none does, the factor is that of the largest magnitude.
    """
    values = voxels.astype(np.float64)
    magnitudes = np.abs(values[values != 0])
    limit = HOT_FACTOR * float(np.percentile(magnitudes, HOT_PERCENTILE, method="lower"))
    highest, note = float(magnitudes.max()), ""
    if highest > limit:
        hot = int(np.count_nonzero(magnitudes > limit))
        note = f"{what}: {hot} voxels of up to {highest:.4g} are clipped to {limit:.4g}, far beyond the others"
        values = np.clip(values, -limit, limit)
    scaled = np.rint(values * (INT16_MAX / min(highest, limit)))
    levels = _count_levels(scaled)
    if levels < FEWEST_LEVELS and levels < _count_levels(values):
        raise CaseError(
            f"{what} has {levels} grey levels after scaling to int16; expected {FEWEST_LEVELS} or more: a few values "
            f"of up to {highest:.4g} lie far beyond the others; clip them, or store the image as int16"
        )
    return scaled, note


def _count_levels(values: NDArray[np.float64]) -> int:
    """Return the number of distinct values that are not 0."""
    return len(np.unique(values[values != 0]))
