"""Find BraTS cases in a folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trainable.core.brats import MODALITIES
from trainable.core.errors import InputError

ENDINGS = (".nii.gz", ".nii")
LAYOUT = "DATA/CASE/CASE_{flair,t1,t1ce,t2,seg}.nii.gz (BraTS2021) or DATA/CASE/CASE-{t2f,t1n,t1c,t2w,seg}.nii.gz"


class CaseError(InputError):
    """The error of one case that cannot be used; the message starts with the case's name."""


@dataclass(frozen=True)
class Naming:
    """How one year's BraTS names its files.

    Attributes:
        separator: between the case's name and the word of a file.
        images: words of the modalities, in the order of MODALITIES.
    """

    separator: str
    images: tuple[str, ...]


NAMES_2021 = Naming("_", MODALITIES)
NAMES_2023 = Naming("-", ("t2f", "t1n", "t1c", "t2w"))


@dataclass(frozen=True)
class Case:
    """Files of one case: images in the order of MODALITIES, seg or None, and how they are named."""

    name: str
    images: tuple[Path, ...]
    seg: Path | None
    naming: Naming


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
        NAMES_2021, NAMES_2023, key=lambda naming: sum(path_of(naming, word) is not None for word in naming.images)
    )
    images = tuple(path for word in naming.images if (path := path_of(naming, word)))
    seg = path_of(naming, "seg")
    words = [*naming.images, "seg"] if need_seg else naming.images
    missing = [f"{name}{naming.separator}{word}.nii.gz" for word in words if not path_of(naming, word)]
    if missing:
        present = ", ".join(sorted(files)) or "no file"
        raise CaseError(f"{name}: {' and '.join(missing)} missing in {folder}, which has {present}; expected {LAYOUT}")
    return Case(name, images, seg, naming)


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
