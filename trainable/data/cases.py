"""Find BraTS cases in a folder, read and check them."""

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

from trainable.core.brats import MODALITIES
from trainable.core.errors import InputError

INT16_MAX = 32767
ENDINGS = (".nii.gz", ".nii")
LAYOUT = "DATA/CASE/CASE_{flair,t1,t1ce,t2,seg}.nii.gz (BraTS2021) or DATA/CASE/CASE-{t2f,t1n,t1c,t2w,seg}.nii.gz"
NIFTI_ERRORS = (ImageFileError, HeaderDataError, WrapStructError)
FILE_ERRORS = (OSError, EOFError, ValueError, OverflowError, isal_zlib.IsalError, struct.error)


class CaseError(InputError):
    """The error of one case that cannot be used; the message starts with the case's name."""


@dataclass(frozen=True)
class Naming:
    """How one year's BraTS names its files and labels.

    Attributes:
        separator: between the case's name and the word of a file.
        images: words of the modalities, in the order of MODALITIES.
        et_label: label of the enhancing tumour.
    """

    separator: str
    images: tuple[str, ...]
    et_label: int


BRATS2021 = Naming("_", MODALITIES, 4)
BRATS2023 = Naming("-", ("t2f", "t1n", "t1c", "t2w"), 3)


@dataclass(frozen=True)
class Case:
    """Files of one case: images in the order of MODALITIES, seg or None, and the enhancing tumour's label in seg."""

    name: str
    images: tuple[Path, ...]
    seg: Path | None
    et_label: int


@dataclass(frozen=True)
class LoadedCase:
    """Volumes of one case.

    Attributes:
        image: int16 (4, X, Y, Z), in the order of MODALITIES.
        label: uint8 (X, Y, Z) of 0, 1, 2, 4; None without a seg.
        affine: (4, 4) in mm.
        seg_dtype: type of the voxels in the seg's file; uint8 without a seg.
    """

    image: NDArray[np.int16]
    label: NDArray[np.uint8] | None
    affine: NDArray[np.float64]
    seg_dtype: np.dtype[Any]


def find_case(folder: Path, *, need_seg: bool) -> Case:
    """Return the case whose files are in a folder; the case has the folder's name.

    Raises:
        CaseError: if the folder cannot be read, or lacks a modality, or the seg if need_seg.
    """
    name = folder.name if folder.name not in ("", "..") else folder.resolve().name
    try:
        files = {path.name for path in folder.iterdir() if path.is_file()}
    except OSError as error:
        raise CaseError(f"{name}: {folder} cannot be read ({error.strerror}); expected {LAYOUT}") from None

    def path_of(naming: Naming, word: str) -> Path | None:
        stem = f"{name}{naming.separator}{word}"
        return next((folder / (stem + end) for end in ENDINGS if stem + end in files), None)

    naming = max(
        BRATS2021, BRATS2023, key=lambda naming: sum(path_of(naming, word) is not None for word in naming.images)
    )
    images = tuple(path for word in naming.images if (path := path_of(naming, word)))
    seg = path_of(naming, "seg")
    words = [*naming.images, "seg"] if need_seg else naming.images
    missing = [f"{name}{naming.separator}{word}.nii.gz" for word in words if not path_of(naming, word)]
    if missing:
        present = ", ".join(sorted(files)) or "no file"
        raise CaseError(f"{name}: {' and '.join(missing)} missing in {folder}, which has {present}; expected {LAYOUT}")
    return Case(name, images, seg, naming.et_label)


def find_cases(data_dir: Path, *, need_seg: bool) -> tuple[list[Case], list[CaseError]]:
    """Return the cases in a folder, sorted by name, and the errors of those that `find_case` refuses.

    A sub-folder that is not hidden is treated as a case if it contains a NIfTI file or is named BraTS* (upper or lower
    case).

    Raises:
        InputError: if there is no such folder, or no sub-folder contains a NIfTI file; the message names the expected
            layout. Also if data_dir cannot be read.
    """
    if not data_dir.is_dir():
        raise InputError(f"{data_dir}: no such folder; expected a folder laid out as {LAYOUT}")
    try:
        folders = sorted(path for path in data_dir.iterdir() if path.is_dir() and not path.name.startswith("."))
        folders = [path for path in folders if path.name.lower().startswith("brats") or _has_nifti(path)]
        any_nifti = any(map(_has_nifti, folders))
    except OSError as error:
        raise InputError(f"{data_dir}: cannot be read: {error}") from None
    if not any_nifti:
        deeper = next(data_dir.glob("*/*/*.nii*"), None)
        hint = f"; did you mean {deeper.parent.parent}?" if deeper else ""
        if _has_nifti(data_dir):
            hint = f"; this folder looks like one case, give the folder above it: {data_dir.resolve().parent}"
        raise InputError(f"{data_dir}: contains no case; expected {LAYOUT}{hint}")
    cases, errors = [], []
    for path in folders:
        try:
            cases.append(find_case(path, need_seg=need_seg))
        except CaseError as error:
            errors.append(error)
    return cases, errors


def _has_nifti(folder: Path) -> bool:
    """Return whether a folder contains a NIfTI file."""
    return any(path.name.endswith(ENDINGS) for path in folder.iterdir())


def load_case(case: Case) -> LoadedCase:
    """Read and check a case.

    A modality of integers within int16 is kept as it is; any other is scaled by one factor so that its largest
    magnitude is 32767, and rounded; the normalisation to z-scores later undoes the factor. ET becomes label 4 for both
    naming conventions.

    Raises:
        CaseError: for a file that is missing, unreadable or truncated, not 3D, or of another shape or affine than the
            first modality; for a modality with NaN or inf or that is all zero; for a seg with labels outside the
            convention.
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
    return LoadedCase(image, _to_label(case, case.seg, voxels), first.affine, seg.get_data_dtype().newbyteorder("="))


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


def _to_label(case: Case, path: Path, voxels: NDArray[Any]) -> NDArray[np.uint8]:
    """Return the labels 0, 1, 2, 4 of those in the case's own convention."""
    flat = voxels.ravel(order="K")
    inside = flat[flat != 0]  # a few percent; sorting all voxels would take long
    values = np.unique(inside if len(inside) == len(flat) else np.append(inside, flat.dtype.type(0)))
    whole = np.isfinite(values) & (np.rint(values) == values)
    if not whole.all():
        fractions = [float(value) for value in values[~whole]][:4]
        raise CaseError(f"{case.name}: {path.name} has non-integer labels such as {fractions}; expected whole numbers")
    expected = [0, 1, 2, case.et_label]
    if not np.isin(values, expected).all():
        present = [int(value) for value in values[:12]]
        hint = "ET is 4 if files are named as in BraTS2021, 3 if as in BraTS2023"
        raise CaseError(f"{case.name}: {path.name} has labels {present}; expected {expected}; {hint}")
    label = voxels.astype(np.uint8)
    if case.et_label != 4:
        label[label == case.et_label] = 4
    return label
