"""Synthetic cases in BraTS's file format, which replace patients in tests, the demo and pictures."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np

from trainable.core.brats import MODALITIES
from trainable.core.config import Shape3
from trainable.core.errors import InputError
from trainable.core.parallel import run_parallel
from trainable.core.progress_bar import progress_bar
from trainable.data.phantom_anatomy import check_shape, make_case

MARKER = "phantom.json"


def write_phantoms(
    out: Path, *, cases: int, shape: Shape3 = (240, 240, 155), seed: int = 0, workers: int = 0
) -> list[Path]:
    """Write synthetic cases as OUT/Phantom_00000/Phantom_00000_flair.nii.gz and so on; return the cases' folders.

    The same seed, shape and index give the same bytes; cases that exist already are written again. One case in six (the
    sixth, the twelfth, ...) has no label 4; in one of four the tumour touches the brain's surface.

    Args:
        out: made if missing; phantom.json in it records seed and shape.
        cases: number of cases.
        shape: (X, Y, Z) in voxels.
        workers: number of processes; 0 for one per core.

    Raises:
        InputError: for a side below 32 voxels, fewer than one case, an `out` that cannot be written, one of the folders
            existing from another seed or shape or from elsewhere, or a killed process.
    """
    check_shape(shape)
    if cases < 1:
        raise InputError(f"cases is {cases}; expected 1 or more")
    folders = [out / f"Phantom_{index:05d}" for index in range(cases)]
    _mark(out, folders, {"seed": seed, "shape": list(shape)})
    work = partial(_write_case, shape=shape, seed=seed)
    with progress_bar("phantoms", cases) as tick:
        run_parallel(work, folders, workers=workers, tick=tick)
    return folders


def _mark(out: Path, folders: list[Path], made_from: dict[str, object]) -> None:
    """Record in OUT, made if missing, the seed and shape of the phantoms that are about to be written to these folders.

    Raises:
        InputError: if one of the folders exists and OUT records something else or nothing, or if OUT cannot be written.
    """
    marker = out / MARKER
    try:
        out.mkdir(parents=True, exist_ok=True)
        recorded = json.loads(marker.read_text()) if marker.exists() else None
        existing = next((folder for folder in folders if folder.exists()), None)
        if existing and recorded != made_from:
            origin = f"made from {recorded}" if recorded else "not known to be phantoms"
            raise InputError(
                f"{out}: contains {existing.name}, {origin}; requested are {made_from}; "
                f"choose another folder, or remove this one first"
            )
        marker.write_text(json.dumps(made_from) + "\n")
    except (OSError, json.JSONDecodeError) as error:
        raise InputError(f"{out}: phantoms cannot be written there: {error}") from None


def _write_case(folder: Path, *, shape: Shape3, seed: int) -> None:
    """Write the NIfTI files of one case; its index is in the folder's name."""
    index = int(folder.name.removeprefix("Phantom_"))
    image, label = make_case(shape, (seed, index), with_et=index % 6 != 5, at_border=index % 4 == 2)
    affine = np.diag([-1.0, -1.0, 1.0, 1.0])
    affine[1, 3] = shape[1] - 1  # 239 on the full grid, as in BraTS
    folder.mkdir(exist_ok=True)
    volumes = dict(zip(MODALITIES, image, strict=True)) | {"seg": label}
    for name, volume in volumes.items():
        nifti = nib.Nifti1Image(volume, affine)
        nifti.header.set_xyzt_units("mm")
        nib.save(nifti, folder / f"{folder.name}_{name}.nii.gz")
