"""Make BraTS2021 cases of the Medical Segmentation Decathlon's Task01_BrainTumour.

SRC/dataset.json                 names of the channels and of the labels
SRC/imagesTr/BRATS_001.nii.gz    4D: FLAIR, T1w, t1gd, T2w
SRC/labelsTr/BRATS_001.nii.gz    1 oedema, 2 non-enhancing tumour, 3 enhancing tumour
"""

from __future__ import annotations

import json
import shutil
import zlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from trainable.cases.case_files import CaseError, find_case
from trainable.cases.folder_listing import first_names, list_folder
from trainable.cases.intensities import INT16_MAX
from trainable.cases.nifti_file import ERRORS
from trainable.core.brats import MODALITIES
from trainable.core.errors import InputError
from trainable.core.locks import lock_folder
from trainable.core.logger import logger
from trainable.core.parallel import run_parallel
from trainable.core.progress_bar import progress_bar

DATASET = "dataset.json"
CHANNELS = {"flair": "flair", "t1w": "t1", "t1gd": "t1ce", "t2w": "t2"}  # names in dataset.json, in lower case
TISSUES = ("background", "edema", "non-enhancing tumor", "enhancing tumo")  # how the names of labels 0, 1, 2, 3 begin
BRATS_LABELS = np.array([0, 2, 1, 4], np.uint8)  # of those labels


@dataclass(frozen=True)
class MsdCase:
    """Files of one case, and the words of the channels in its image."""

    name: str
    image: Path
    label: Path
    channels: tuple[str, ...]


def convert_msd(source: Path, destination: Path, *, workers: int = 0) -> list[str]:
    """Write DEST/CASE/CASE_{flair,t1,t1ce,t2,seg}.nii.gz of each labelled case; return the names of all these cases.

    Grid, affine and intensities are kept, labels become those of BraTS2021. A case that DEST has already, whole, is not
    written again, so an interrupted call is continued by the same one.

    Args:
        workers: number of processes; 0 for one per core.

    Raises:
        InputError: if `source` is not Task01_BrainTumour, DEST lies in it or cannot be written, or cases cannot be
            read; all such cases are listed, and the others are written.
    """
    cases = find_msd_cases(source)
    if destination.resolve().is_relative_to(source.resolve()):
        raise InputError(f"{destination} lies in {source}; choose another folder for the cases")
    with lock_folder(destination):
        new = [case for case in cases if not _is_done(case, destination)]
        with progress_bar("cases", len(cases)) as tick:
            tick(len(cases) - len(new))
            errors = run_parallel(partial(_convert_case, destination=destination), new, workers=workers, tick=tick)
    bad = [error for error in errors if error is not None]
    logger.info(f"wrote {len(new) - len(bad)} cases, {len(cases) - len(new)} were there: {destination}")
    if bad:
        listing = "".join(f"\n  {error}" for error in bad)
        raise InputError(f"{len(bad)} of {len(cases)} cases cannot be converted:{listing}")
    return [case.name for case in cases]


def find_msd_cases(source: Path) -> list[MsdCase]:
    """Return the labelled cases of Task01_BrainTumour, sorted by name.

    Raises:
        InputError: if the folder is not laid out as that, its channels or labels are others, or an image has no label
            or a label no image.
    """
    channels = _channels(source)
    images, labels = (_volumes(source / folder) for folder in ("imagesTr", "labelsTr"))
    if single := sorted(images.keys() ^ labels.keys()):
        raise InputError(
            f"{source}: {len(single)} names are in only one of imagesTr and labelsTr: {first_names(single)}; "
            "copy or unpack the data again"
        )
    if not images:
        raise InputError(f"{source}: imagesTr has no NIfTI file; copy or unpack the data again")
    return [MsdCase(name, images[name], labels[name], channels) for name in sorted(images)]


def _channels(source: Path) -> tuple[str, ...]:
    """Return the words of the images' channels that dataset.json names; refuse labels of another meaning."""
    path, expected = source / DATASET, "expected the folder Task01_BrainTumour of the Medical Segmentation Decathlon"
    try:
        about = json.loads(path.read_text())
        channels = [str(about["modality"][str(index)]) for index in range(len(about["modality"]))]
        tissues = [str(about["labels"][str(label)]) for label in range(len(about["labels"]))]
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); {expected}") from None
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{path}: has no numbered `modality` and `labels`; {expected}") from None
    words = [CHANNELS.get(channel.lower(), channel) for channel in channels]
    if sorted(words) != sorted(MODALITIES):
        raise InputError(f"{path}: the modalities are {channels}; {expected}, with FLAIR, T1w, t1gd and T2w")
    same = len(tissues) == len(TISSUES) and all(map(str.startswith, map(str.lower, tissues), TISSUES))
    if not same:
        raise InputError(
            f"{path}: the labels are {tissues}; {expected}: background, edema, non-enhancing tumor, enhancing tumour"
        )
    return tuple(words)


def _volumes(folder: Path) -> dict[str, Path]:
    """Return the NIfTI files in a folder by name; macOS's ._NAME, which the archive has, are left out."""
    try:
        return list_folder(folder).volumes
    except OSError as error:
        raise InputError(f"{folder}: cannot be read ({error.strerror})") from None


def _is_done(case: MsdCase, destination: Path) -> bool:
    """Return whether a case is there already, whole.

    Raises:
        InputError: if its folder is there and is not a whole case: it is not of this command, which renames whole ones.
    """
    folder = destination / case.name
    if not folder.exists():
        return False
    try:
        find_case(folder, need_seg=True)
    except CaseError as error:
        raise InputError(f"{error}; remove {folder}, and it is written again") from None
    return True


def _convert_case(case: MsdCase, destination: Path) -> str | None:
    """Write the files of one case; return why it cannot be done, or None."""
    temp = destination / f".{case.name}.new"
    shutil.rmtree(temp, ignore_errors=True)  # of a call that was killed
    try:
        temp.mkdir()
        affine, volumes = _read_case(case)
        for word, volume in volumes.items():
            nifti = nib.Nifti1Image(volume, affine)
            nifti.header.set_xyzt_units("mm")
            nib.save(nifti, temp / f"{case.name}_{word}.nii.gz")
        temp.rename(destination / case.name)
    except CaseError as error:
        return str(error)
    except OSError as error:
        raise InputError(f"{destination}: {case.name} cannot be written ({error.strerror})") from None
    finally:
        shutil.rmtree(temp, ignore_errors=True)
    return None


def _read_case(case: MsdCase) -> tuple[NDArray[np.float64], dict[str, NDArray[Any]]]:
    """Return the affine (4, 4) of a case, and its volumes (X, Y, Z) by word: int16 or float32, seg uint8.

    Raises:
        CaseError: for a file that cannot be read, an image that is not 4D with a channel per modality, or labels of
            another shape or other values.
    """
    image, voxels = _read(case, case.image)
    _, label = _read(case, case.label)
    if voxels.ndim != 4 or voxels.shape[3] != len(case.channels):
        raise CaseError(
            f"{case.name}: {case.image} has shape {voxels.shape}; expected (X, Y, Z, {len(case.channels)}) as in MSD, "
            "not one file per modality as in nnU-Net"
        )
    if label.shape != voxels.shape[:3]:
        raise CaseError(f"{case.name}: {case.label} has shape {label.shape}; expected {voxels.shape[:3]}")
    if not np.isin(label, range(len(BRATS_LABELS))).all():
        raise CaseError(f"{case.name}: {case.label} has labels {np.unique(label)[:8].tolist()}; expected 0, 1, 2, 3")
    whole = bool((np.rint(voxels) == voxels).all()) and float(np.abs(voxels).max()) <= INT16_MAX
    volumes = dict(zip(case.channels, np.moveaxis(voxels.astype(np.int16 if whole else np.float32), 3, 0), strict=True))
    return image.affine, {**volumes, "seg": BRATS_LABELS[label.astype(np.intp)]}


def _read(case: MsdCase, path: Path) -> tuple[Any, NDArray[Any]]:
    """Return a NIfTI image and its voxels."""
    try:
        image = nib.Nifti1Image.from_filename(path)
        return image, np.asanyarray(image.dataobj)
    except (*ERRORS, zlib.error, MemoryError) as error:  # type: ignore[misc]  # isal's stub declares its class as an object
        raise CaseError(f"{case.name}: {path} cannot be read ({error}); copy or unpack the data again") from None
