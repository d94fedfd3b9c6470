"""Read a case: its NIfTI files, checked, on one grid, in the orientation and the types in which cases are trained."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainable.cases.affine import same_affine
from trainable.cases.case_checks import check_images, check_truth
from trainable.cases.case_files import Case, CaseError
from trainable.cases.folder_listing import stem_of
from trainable.cases.grid import FileGrid
from trainable.cases.intensities import Background, image_to_int16
from trainable.cases.labels import LabelConvention, labels_of_case, read_labels
from trainable.cases.nifti_file import NiftiFile, read_nifti
from trainable.cases.orientation import lps_affine, lps_shape, to_lps


@dataclass(frozen=True)
class LoadedCase:
    """Volumes of one case, in LPS.

    Attributes:
        image: int16 (4, X, Y, Z), in the order of MODALITIES.
        label: uint8 (X, Y, Z) of 0, 1, 2, 4; None without a seg.
        affine: (4, 4) in mm.
        seg_dtype: type of the voxels in the seg's file; uint8 without a seg.
        file_grid: the grid of the case's files.
        et_value: value of ET in the seg's file; None without ET or a seg.
        notes: what was changed in the images, and what looks wrong but may be right, in words.
    """

    image: NDArray[np.int16]
    label: NDArray[np.uint8] | None
    affine: NDArray[np.float64]
    seg_dtype: np.dtype[Any]
    file_grid: FileGrid
    et_value: int | None = None
    notes: tuple[str, ...] = ()


def load_case(case: Case, labels: LabelConvention | None = None, background: Background = 0.0) -> LoadedCase:
    """Read and check a case, and turn it to LPS; its voxels stay those of the files.

    Images become int16 with a background of 0, see `image_to_int16`.

    Args:
        labels: what the values of its seg mean; None for what the names tell.
        background: the option of this name.

    Raises:
        CaseError: for a file that is missing, unreadable or truncated, not 3D, without a usable affine, or of another
            shape or affine than the first modality; for a modality that image_to_int16 refuses; for a seg with labels
            outside the convention, or whose convention the names do not tell; for two files for one volume that
            differ; and for what check_images and check_truth refuse.
    """
    notes = _compare_doubles(case)
    first = read_nifti(case.name, case.images[0])
    # in the memory order of files in LPS, x fastest, so that only the crop is transposed
    image = np.empty((len(case.images), *lps_shape(first.grid)[::-1]), np.int16).transpose(0, 3, 2, 1)
    contradictions = []
    for channel, path in enumerate(case.images):
        volume = read_nifti(case.name, path) if channel else first
        _check_same_grid(case, path, volume, first)
        voxels, note = image_to_int16(f"{case.name}: {path.name}", volume.voxels, background)
        image[channel] = to_lps(voxels, first.grid.affine)
        notes += [note] * bool(note)
        contradictions += [f"{path.name}: {volume.note}"] * bool(volume.note)
    notes += [f"{case.name}: {contradictions[0]}"] if contradictions else []
    notes += check_images(case, image)
    affine = lps_affine(first.grid)
    if case.seg is None:
        return LoadedCase(image, None, affine, np.dtype(np.uint8), first.grid, notes=tuple(notes))
    seg = read_nifti(case.name, case.seg)
    _check_same_grid(case, case.seg, seg, first)
    label, et_value = read_labels(case, case.seg, seg.voxels, labels or labels_of_case(case))
    dtype, turned = seg.dtype.newbyteorder("="), to_lps(label, first.grid.affine)
    check_truth(case, image, turned)
    return LoadedCase(image, turned, affine, dtype, first.grid, et_value, tuple(notes))


def _compare_doubles(case: Case) -> list[str]:
    """Return a note on a case that is there under the names of two years, with the same content.

    Raises:
        CaseError: if two files for one volume of the case differ.
    """
    for path, other in case.own_doubles:
        one, two = (read_nifti(case.name, file) for file in (path, other))
        same_grid = one.grid.shape == two.grid.shape and same_affine(one.grid.affine, two.grid.affine)
        if not same_grid or not np.array_equal(one.voxels, two.voxels):
            raise CaseError(
                f"{case.name}: {path.name} and {other.name} are two files for one volume and differ; which of them is "
                "right cannot be known; remove the other"
            )
    renamed = [(path, other) for path, other in case.own_doubles if stem_of(path.name) != stem_of(other.name)]
    return [
        f"{case.name}: {path.name} and {other.name} are the same, named as in two years; the first is read"
        for path, other in renamed[:1]
    ]


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
