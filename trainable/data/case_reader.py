"""Read a case: its NIfTI files, checked, on one grid, in the orientation and the types in which cases are trained."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainable.data.affine import same_affine
from trainable.data.cases import Case, CaseError
from trainable.data.grid import FileGrid
from trainable.data.intensities import Background, image_to_int16
from trainable.data.nifti_file import NiftiFile, read_nifti
from trainable.data.orientation import lps_affine, lps_shape, to_lps

LABEL_ROUNDING = 0.02  # how far a label may be from a whole number


@dataclass(frozen=True)
class LoadedCase:
    """Volumes of one case, in LPS.

    Attributes:
        image: int16 (4, X, Y, Z), in the order of MODALITIES.
        label: uint8 (X, Y, Z) of 0, 1, 2, 4; None without a seg.
        affine: (4, 4) in mm.
        seg_dtype: type of the voxels in the seg's file; uint8 without a seg.
        file_grid: the grid of the case's files.
        notes: what was changed in the images, in words; one text per image.
    """

    image: NDArray[np.int16]
    label: NDArray[np.uint8] | None
    affine: NDArray[np.float64]
    seg_dtype: np.dtype[Any]
    file_grid: FileGrid
    notes: tuple[str, ...] = ()


def load_case(case: Case, background: Background = 0.0) -> LoadedCase:
    """Read and check a case, and turn it to LPS; its voxels stay those of the files.

    Images become int16 with a background of 0, see `image_to_int16`. ET becomes label 4 for both naming conventions.

    Args:
        background: the option of this name.

    Raises:
        CaseError: for a file that is missing, unreadable or truncated, not 3D, without a usable affine, or of another
            shape or affine than the first modality; for a modality that image_to_int16 refuses; for a seg with labels
            outside the convention.
    """
    first = read_nifti(case.name, case.images[0])
    # in the memory order of files in LPS, x fastest, so that only the crop is transposed
    image = np.empty((len(case.images), *lps_shape(first.grid)[::-1]), np.int16).transpose(0, 3, 2, 1)
    notes = []
    for channel, path in enumerate(case.images):
        volume = read_nifti(case.name, path) if channel else first
        _check_same_grid(case, path, volume, first)
        voxels, note = image_to_int16(f"{case.name}: {path.name}", volume.voxels, background)
        image[channel] = to_lps(voxels, first.grid.affine)
        notes += [note] * bool(note)
    affine = lps_affine(first.grid)
    if case.seg is None:
        return LoadedCase(image, None, affine, np.dtype(np.uint8), first.grid, tuple(notes))
    seg = read_nifti(case.name, case.seg)
    _check_same_grid(case, case.seg, seg, first)
    label = _to_label(case, case.seg, to_lps(seg.voxels, first.grid.affine))
    return LoadedCase(image, label, affine, seg.dtype.newbyteorder("="), first.grid, tuple(notes))


def _check_same_grid(case: Case, path: Path, volume: NiftiFile, first: NiftiFile) -> None:
    """Raise CaseError if a volume has another shape or affine than the case's first."""
    grid, wanted, expected = volume.grid, first.grid, f"that of {case.images[0].name}"
    if grid.shape != wanted.shape:
        raise CaseError(f"{case.name}: {path.name} has shape {grid.shape}; expected {wanted.shape}, {expected}")
    if not same_affine(grid.affine, wanted.affine):
        raise CaseError(
            f"{case.name}: {path.name} has affine {np.round(grid.affine, 3).tolist()}; expected "
            f"{np.round(wanted.affine, 3).tolist()}, {expected}; resample the case onto one grid"
        )


def _to_label(case: Case, path: Path, voxels: NDArray[Any]) -> NDArray[np.uint8]:
    """Return the labels 0, 1, 2, 4 of those in the case's own convention."""
    flat = voxels.ravel(order="K")
    inside = flat[flat != 0]  # a few percent; sorting all voxels would take long
    values = np.unique(inside if len(inside) == len(flat) else np.append(inside, flat.dtype.type(0)))
    whole = np.isfinite(values) & (np.abs(np.rint(values) - values) <= LABEL_ROUNDING)
    if not whole.all():
        fractions = [float(value) for value in values[~whole]][:4]
        raise CaseError(f"{case.name}: {path.name} has non-integer labels such as {fractions}; expected whole numbers")
    expected = [0, 1, 2, case.et_label]
    values = np.rint(values)
    if not np.isin(values, expected).all():
        present = [int(value) for value in np.unique(values)[:12]]
        hint = "ET is 4 if files are named as in BraTS2021, 3 if as in BraTS2023"
        raise CaseError(f"{case.name}: {path.name} has labels {present}; expected {expected}; {hint}")
    label = (np.rint(voxels) if voxels.dtype.kind == "f" else voxels).astype(np.uint8)
    if case.et_label != 4:
        label[label == case.et_label] = 4
    return label
