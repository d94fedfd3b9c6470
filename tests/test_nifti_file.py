"""Files that are damaged, or claim what they do not have, are refused by name; harmless oddities are read."""

from __future__ import annotations

import gzip
import shutil
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from changed_cases import case_of, change_files, patch_header
from isal import igzip

from trainable.cases.case_files import CaseError
from trainable.cases.case_reader import load_case
from trainable.cases.nifti_file import BEYOND, read_nifti
from trainable.core.errors import InputError
from trainable.core.options import make_config
from trainable.data.prepare import prepare_data

DIM, PIXDIM, VOX_OFFSET, CODES, QUATERNION, SFORM = 42, 80, 108, 252, 256, 280  # bytes of a NIfTI-1 header


@pytest.fixture
def folder(phantoms: Path, tmp_path: Path) -> Path:
    """The folder of a case that a test may spoil."""
    return shutil.copytree(phantoms / "Phantom_00000", tmp_path / "data" / "Phantom_00000")


@pytest.fixture
def t1(folder: Path) -> Path:
    return folder / "Phantom_00000_t1.nii.gz"


def test_a_header_that_claims_more_than_fits_is_refused_and_the_good_cases_are_prepared(
    folder: Path, t1: Path, phantoms: Path, tmp_path: Path
) -> None:
    for number in range(1, 5):
        shutil.copytree(phantoms / f"Phantom_0000{number}", folder.parent / f"Phantom_0000{number}")
    patch_header(t1, DIM, struct.pack("<3h", 32767, 32767, 32767))
    config = make_config({"data_dir": folder.parent, "cache_dir": tmp_path / "cache"})
    message = r"Phantom_00000: Phantom_00000_t1\.nii\.gz cannot be read.* claims 32767 x 32767 x 32767 voxels of int16"
    with pytest.raises(InputError, match=message):
        prepare_data(config, quiet=True)
    data = prepare_data(config.model_copy(update={"skip_bad_cases": True}), quiet=True)
    assert len(data.split.train + data.split.val + data.split.test) == 4


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((60, 48, 40), r"claims 60 x 48 x 40 voxels of \w+, \d+ bytes in all, and it has \d+"),
        ((48, -1, 40), "claims 48 x -1 x 40 voxels"),
        ((48, 0, 40), "claims 48 x 0 x 40 voxels"),
    ],
)
def test_a_header_of_another_size_than_the_file_is_refused(t1: Path, shape: tuple[int, ...], message: str) -> None:
    patch_header(t1, DIM, struct.pack("<3h", *shape))
    with pytest.raises(CaseError, match=message):
        read_nifti("A", t1)


def test_a_header_that_claims_gigabytes_of_a_small_file_allocates_none_of_them(t1: Path) -> None:
    patch_header(t1, DIM, struct.pack("<3h", 640, 640, 640))
    tracemalloc.start()
    try:
        with pytest.raises(CaseError, match="claims 640 x 640 x 640 voxels"):
            read_nifti("A", t1)
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


def test_content_far_beyond_what_the_header_says_is_not_unpacked(t1: Path) -> None:
    content = gzip.decompress(t1.read_bytes())
    t1.write_bytes(igzip.compress(content + bytes(2**20)))
    assert read_nifti("A", t1).grid.shape == (48, 48, 40)
    t1.write_bytes(igzip.compress(content + bytes(40 * BEYOND)))
    with pytest.raises(CaseError, match=r"more than \d+ bytes, far more than its header claims"):
        read_nifti("A", t1)


@pytest.mark.parametrize("offset", [float("nan"), float("inf"), -8.0, 1e30])
def test_voxels_that_begin_outside_the_file_are_refused(t1: Path, offset: float) -> None:
    patch_header(t1, VOX_OFFSET, struct.pack("<f", offset))
    with pytest.raises(CaseError, match=r"A: Phantom_00000_t1\.nii\.gz cannot be read"):
        read_nifti("A", t1)


@pytest.mark.parametrize("tail", [b"\n", b"\0" * 512, b"some text", b"\0\0 text", gzip.compress(b"", mtime=0)])
def test_what_follows_the_compressed_content_changes_nothing(t1: Path, tail: bytes) -> None:
    before = read_nifti("A", t1).voxels
    t1.write_bytes(t1.read_bytes() + tail)
    np.testing.assert_array_equal(read_nifti("A", t1).voxels, before)


def test_a_file_in_several_compressed_parts_is_read_whole(t1: Path) -> None:
    before, content = read_nifti("A", t1).voxels, gzip.decompress(t1.read_bytes())
    parts = [content[start : start + 100_000] for start in range(0, len(content), 100_000)]
    t1.write_bytes(b"".join(map(gzip.compress, parts)))
    np.testing.assert_array_equal(read_nifti("A", t1).voxels, before)
    t1.write_bytes(b"".join([*map(gzip.compress, parts[:-1]), gzip.compress(parts[-1])[:-5]]))
    with pytest.raises(CaseError, match="the compressed content is cut off"):
        read_nifti("A", t1)


def test_an_empty_file_is_called_empty(t1: Path) -> None:
    t1.write_bytes(b"")
    with pytest.raises(CaseError, match=r"A: Phantom_00000_t1\.nii\.gz cannot be read.*it is empty, 0 bytes"):
        read_nifti("A", t1)


def test_last_axes_of_length_1_are_dropped_and_others_refused(folder: Path) -> None:
    plain = load_case(case_of(folder))
    change_files(folder, lambda voxels, affine: (voxels[..., None], affine), "t1")
    change_files(folder, lambda voxels, affine: (voxels[..., None, None], affine), "seg")
    loaded = load_case(case_of(folder))
    np.testing.assert_array_equal(loaded.image, plain.image)
    np.testing.assert_array_equal(loaded.label, plain.label)
    change_files(folder, lambda voxels, affine: (np.stack([voxels, voxels], 3), affine), "t2")
    with pytest.raises(CaseError, match=r"_t2\.nii\.gz has shape \(48, 48, 40, 2\); expected one 3D volume"):
        load_case(case_of(folder))


def column_of_zeros(path: Path) -> None:
    for row in range(3):
        patch_header(path, SFORM + 16 * row, bytes(4))


def axes_in_one_plane(path: Path) -> None:
    patch_header(path, SFORM, np.array([[1, 0, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]], "<f4").tobytes())


def quaternion_that_is_none(path: Path) -> None:
    patch_header(path, CODES, struct.pack("<2h3f", 1, 0, 3.0, 3.0, 3.0))


AFFINES: list[tuple[Callable[[Path], None], str]] = [
    (lambda path: patch_header(path, SFORM, bytes(48)), "its sform gives voxels of size 0 along 3 of 3 axes"),
    (column_of_zeros, "its sform gives voxels of size 0 along 1 of 3 axes"),
    (lambda path: patch_header(path, SFORM, struct.pack("<f", np.inf)), "its sform gives numbers that are not finite"),
    (lambda path: patch_header(path, SFORM, struct.pack("<f", np.nan)), "its sform gives numbers that are not finite"),
    (axes_in_one_plane, "its sform gives axes that lie in one plane"),
    (lambda path: patch_header(path, SFORM, struct.pack("<f", 1e6)), r"its sform gives voxels of 1e\+06 x 1 x 1 mm"),
    (quaternion_that_is_none, "its sform is not set; its qform gives values that make no affine"),
]


@pytest.mark.parametrize(("spoil", "message"), AFFINES)
def test_an_affine_without_a_place_for_each_voxel_is_refused_and_described(
    folder: Path, spoil: Callable[[Path], None], message: str
) -> None:
    for path in folder.iterdir():
        spoil(path)
    with pytest.raises(CaseError, match=rf"Phantom_00000_flair\.nii\.gz: no place of its voxels is known: .*{message}"):
        load_case(case_of(folder))


def test_a_valid_qform_does_not_replace_an_sform_that_cannot_be_used(t1: Path) -> None:
    image = nib.load(t1)
    image.set_qform(image.affine, 1)
    nib.save(image, t1)
    patch_header(t1, SFORM, bytes(48))
    with pytest.raises(CaseError, match=r"its sform gives voxels of size 0 .*; its qform is \[\[-1\.0, 0\.0"):
        read_nifti("A", t1)


def test_a_file_without_sform_and_qform_has_voxels_along_the_axes(t1: Path) -> None:
    patch_header(t1, CODES, bytes(4))
    assert np.abs(read_nifti("A", t1).grid.affine[:3, :3]).tolist() == np.eye(3).tolist()


def test_affines_that_differ_by_rounding_are_one_grid_and_others_are_not(folder: Path) -> None:
    change_files(folder, lambda voxels, affine: (voxels, affine + np.eye(4, k=1) * 0.009), "t2")
    assert load_case(case_of(folder)).affine.tolist() == nib.load(folder / f"{folder.name}_t1.nii.gz").affine.tolist()
    change_files(folder, lambda voxels, affine: (voxels, affine + np.eye(4, k=3) * 0.02), "t1")
    with pytest.raises(CaseError, match=r"_t1\.nii\.gz has affine .*0\.02.*that of .*_flair\.nii\.gz"):
        load_case(case_of(folder))
