"""Read a case's NIfTI files and check them."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from isal import igzip, isal_zlib
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError
from numpy.typing import NDArray

from trainable.data.cases import Case, CaseError
from trainable.data.labels import LabelConvention, labels_of_case, read_labels

INT16_MAX = 32767
NIFTI_ERRORS = (ImageFileError, HeaderDataError, WrapStructError)
FILE_ERRORS = (OSError, EOFError, ValueError, OverflowError, isal_zlib.IsalError, struct.error)


@dataclass(frozen=True)
class LoadedCase:
    """Volumes of one case.

    Attributes:
        image: int16 (4, X, Y, Z), in the order of MODALITIES.
        label: uint8 (X, Y, Z) of 0, 1, 2, 4; None without a seg.
        affine: (4, 4) in mm.
        seg_dtype: type of the voxels in the seg's file; uint8 without a seg.
        et_value: value of ET in the seg's file; None without ET or a seg.
    """

    image: NDArray[np.int16]
    label: NDArray[np.uint8] | None
    affine: NDArray[np.float64]
    seg_dtype: np.dtype[Any]
    et_value: int | None = None


def load_case(case: Case, labels: LabelConvention | None = None) -> LoadedCase:
    """Read and check a case.

    A modality of integers within int16 is kept as it is; any other is scaled by one factor so that its largest
    magnitude is 32767, and rounded; the normalisation to z-scores later undoes the factor.

    Args:
        labels: what the values of its seg mean; None for what the names tell.

    Raises:
        CaseError: for a file that is missing, unreadable or truncated, not 3D, or of another shape or affine than the
            first modality; for a modality with NaN or inf or that is all zero; for a seg with labels outside the
            convention, or whose convention the names do not tell.
    """
    first, voxels = _read(case, case.images[0])
    # in the memory order of the files, x fastest, so that only the crop is transposed
    image = np.empty((len(case.images), *first.shape[::-1]), np.int16).transpose(0, 3, 2, 1)
    for channel, path in enumerate(case.images):
        if channel > 0:
            volume, voxels = _read(case, path)
            _check_same_grid(case, path, volume, first)
        image[channel] = _to_int16(case, path, voxels)
    if case.seg is None:
        return LoadedCase(image, None, first.affine, np.dtype(np.uint8))
    seg, voxels = _read(case, case.seg)
    _check_same_grid(case, case.seg, seg, first)
    label, et_value = read_labels(case, case.seg, voxels, labels or labels_of_case(case))
    return LoadedCase(image, label, first.affine, seg.get_data_dtype().newbyteorder("="), et_value)


def _read(case: Case, path: Path) -> tuple[Any, NDArray[Any]]:
    """Return the NIfTI image in a file and its voxels, in their type on disk, or as floats if the header scales."""
    try:
        content = path.read_bytes()
        # Decompressed to its end: nibabel stops at the last voxel and so misses a truncated or damaged tail.
        if content[:2] == b"\x1f\x8b":
            content = igzip.decompress(content)
        kind = nib.Nifti2Image if content[:4] in (b"\x1c\x02\0\0", b"\0\0\x02\x1c") else nib.Nifti1Image
        volume = kind.from_bytes(content)
        voxels = np.asanyarray(volume.dataobj)
    except (*NIFTI_ERRORS, *FILE_ERRORS) as error:  # type: ignore[misc]  # isal's stub declares its class as an object
        raise CaseError(
            f"{case.name}: {path.name} cannot be read, truncated or damaged ({str(error) or type(error).__name__}); "
            f"expected a whole NIfTI file; copy or download it again to {path}"
        ) from None
    if voxels.ndim != 3:
        raise CaseError(f"{case.name}: {path.name} has shape {voxels.shape}; expected one 3D volume")
    if voxels.dtype.kind not in "iuf":
        raise CaseError(f"{case.name}: {path.name} has voxels of type {voxels.dtype}; expected real numbers")
    return volume, voxels


def _check_same_grid(case: Case, path: Path, volume: Any, first: Any) -> None:
    """Raise CaseError if a volume has another shape or affine than the case's first."""
    expected = f"that of {case.images[0].name}"
    if volume.shape != first.shape:
        raise CaseError(f"{case.name}: {path.name} has shape {volume.shape}; expected {first.shape}, {expected}")
    if not np.allclose(volume.affine, first.affine, rtol=0, atol=1e-3):
        raise CaseError(
            f"{case.name}: {path.name} has affine {np.round(volume.affine, 3).tolist()}; expected "
            f"{np.round(first.affine, 3).tolist()}, {expected}; resample the case onto one grid"
        )


def _to_int16(case: Case, path: Path, voxels: NDArray[Any]) -> NDArray[Any]:
    """Return voxels whose values fit into int16, scaled by one factor if needed."""
    if voxels.size == 0 or not voxels.any():
        raise CaseError(f"{case.name}: {path.name} is 0 everywhere; expected a brain on a background of 0")
    low, high = voxels.min(), voxels.max()
    if not (np.isfinite(low) and np.isfinite(high)):  # with a NaN anywhere the minimum is NaN
        bad = int(np.count_nonzero(~np.isfinite(voxels)))
        raise CaseError(f"{case.name}: {path.name} has NaN or inf in {bad} voxels; expected finite numbers")
    fits = low >= -INT16_MAX - 1 and high <= INT16_MAX
    if fits and (voxels.dtype.kind in "iu" or bool((np.rint(voxels) == voxels).all())):
        return voxels
    return np.rint(voxels.astype(np.float64) * (INT16_MAX / max(abs(float(low)), abs(float(high)))))
