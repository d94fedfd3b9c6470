"""Whether a prepared case is that of the files as they are now."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from trainable.cases.case_files import Case, find_case
from trainable.data.cache import METADATA, read_metadata
from trainable.data.cache_check import PLAIN_READING, is_of_source
from trainable.data.cache_writer import prepare

NAME = "Phantom_00000"


@pytest.fixture
def folder(phantoms: Path, tmp_path: Path) -> Path:
    """The folder of a case that a test may spoil; its seg is not compressed."""
    folder = shutil.copytree(phantoms / NAME, tmp_path / "data" / NAME)
    packed = folder / f"{NAME}_seg.nii.gz"
    nib.save(nib.load(packed), packed.with_suffix(""))
    packed.unlink()
    return folder


def made_anew(folder: Path, cache: Path) -> bool:
    """Prepare a case; return whether it was not ready."""
    before = (cache / NAME).stat().st_ino if (cache / NAME).exists() else 0
    prepare([find_case(folder, need_seg=True)], cache, workers=1, quiet=True)
    return (cache / NAME).stat().st_ino != before


def replace_kept_time(path: Path, voxels: Any) -> None:
    """Write a file again with other voxels, the same size and the same modification time."""
    stat, image = path.stat(), nib.load(path)
    nib.save(nib.Nifti1Image(voxels, image.affine, image.header), path)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)


def test_a_truth_that_is_replaced_by_one_of_the_same_size_and_time_is_prepared_anew(
    folder: Path, tmp_path: Path
) -> None:
    cache, seg = tmp_path / "cache", folder / f"{NAME}_seg.nii"
    assert made_anew(folder, cache)
    label = np.asarray(nib.load(seg).dataobj)
    assert (np.load(cache / NAME / "label.npy") == 4).any()
    replace_kept_time(seg, np.where(label == 4, 1, label).astype(np.uint8))
    assert made_anew(folder, cache)
    assert not (np.load(cache / NAME / "label.npy") == 4).any()


def test_a_copy_of_the_data_and_another_mode_leave_the_cache_as_it_is(folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    assert made_anew(folder, cache)
    copied = shutil.copytree(folder, tmp_path / "copy" / NAME)  # keeps modification times, as rsync -a does
    changed = [path.stat().st_ctime_ns for path in (folder / f"{NAME}_seg.nii", copied / f"{NAME}_seg.nii")]
    assert changed[0] != changed[1]
    assert not made_anew(copied, cache)
    (copied / f"{NAME}_t1.nii.gz").chmod(0o400)
    assert not made_anew(copied, cache)
    assert is_of_source(cache, PLAIN_READING, find_case(copied, need_seg=True))


def test_a_cache_of_an_older_version_is_used_without_change_times_and_checksums(folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    assert made_anew(folder, cache)
    metadata: Any = read_metadata(cache / NAME)
    metadata["source"] = [file[:3] for file in metadata["source"]]
    (cache / NAME / METADATA).write_text(json.dumps(metadata))
    assert not made_anew(folder, cache)
    os.utime(folder / f"{NAME}_t2.nii.gz")
    assert made_anew(folder, cache)


def test_a_second_file_for_a_modality_that_appears_later_is_looked_at(folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    assert made_anew(folder, cache)
    nib.save(nib.load(folder / f"{NAME}_t1.nii.gz"), folder / f"{NAME}_t1.nii")
    assert made_anew(folder, cache)
    assert not made_anew(folder, cache)
    case: Case = find_case(folder, need_seg=True)
    assert [file[0] for file in read_metadata(cache / NAME)["source"]] == [path.name for path in case.files]
    assert len(case.files) == 6
