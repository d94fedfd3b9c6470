"""The unit of an affine, and an sform and a qform that contradict each other."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from changed_cases import case_of

from trainable.cases.case_reader import load_case
from trainable.cases.nifti_file import read_nifti
from trainable.core.options import make_config, to_dict
from trainable.model.unet3d import build_network
from trainable.predict import predict_cases
from trainable.training.checkpoint import save_checkpoint

NAME = "Phantom_00000"


@pytest.fixture
def folder(phantoms: Path, tmp_path: Path) -> Path:
    """The folder of a case that a test may spoil."""
    return shutil.copytree(phantoms / NAME, tmp_path / "data" / NAME)


def in_unit(folder: Path, unit: str, size: float) -> None:
    """Write the files of a case again: a voxel of 1 mm has this size, in this unit."""
    for path in folder.iterdir():
        image = nib.load(path)
        affine = image.affine.copy()
        affine[:3] *= size
        changed = nib.Nifti1Image(np.asanyarray(image.dataobj), affine)
        changed.header.set_xyzt_units(unit)
        nib.save(changed, path)


@pytest.mark.parametrize(("unit", "size"), [("meter", 1e-3), ("micron", 1e3)])
def test_an_affine_in_metres_or_micrometres_is_brought_to_mm_and_scores_and_predictions_are_in_mm(
    folder: Path, tmp_path: Path, unit: str, size: float
) -> None:
    config = make_config({"depth": 2, "base_channels": 4, "target_shape": [16, 16, 16], "device": "cpu"})
    save_checkpoint({"config": to_dict(config), "network": build_network(config).state_dict()}, tmp_path / "m.pth")
    plain = load_case(case_of(folder))
    expected = predict_cases(tmp_path / "m.pth", [folder], tmp_path / "mm").scores[NAME]
    in_unit(folder, unit, size)
    loaded = load_case(case_of(folder))
    np.testing.assert_allclose(loaded.affine, plain.affine, rtol=1e-6)
    assert loaded.notes == ()
    scores = predict_cases(tmp_path / "m.pth", [folder], tmp_path / "out").scores[NAME]
    assert scores == pytest.approx(expected, rel=1e-5)
    assert expected["hd95_WT"] > 1
    written = nib.load(tmp_path / "out" / f"{NAME}.nii.gz")
    np.testing.assert_allclose(written.affine, plain.affine, rtol=1e-6)
    assert written.header.get_xyzt_units()[0] == "mm"


@pytest.mark.parametrize("unit", ["unknown", "mm"])
def test_an_affine_without_a_unit_is_in_mm(folder: Path, unit: str) -> None:
    plain = load_case(case_of(folder)).affine
    in_unit(folder, unit, 1.0)
    loaded = load_case(case_of(folder))
    np.testing.assert_array_equal(loaded.affine, plain)
    assert loaded.notes == ()


@pytest.mark.parametrize(("unit", "words"), [("meter", "metres, .* of 1000 x 1000 x 1000 mm"), ("micron", "microm.*")])
def test_a_unit_that_makes_no_voxels_of_a_head_is_taken_as_mm_and_noted_once(
    folder: Path, unit: str, words: str
) -> None:
    plain = load_case(case_of(folder)).affine
    in_unit(folder, unit, 1.0)
    loaded = load_case(case_of(folder))
    np.testing.assert_array_equal(loaded.affine, plain)
    (note,) = loaded.notes
    assert re.match(rf"{NAME}: {NAME}_flair\.nii\.gz: the unit is {words}; mm are taken", note)


def test_an_sform_and_a_qform_of_other_voxel_sizes_are_noted_once_and_the_sform_is_taken(folder: Path) -> None:
    plain = load_case(case_of(folder)).affine
    for path in folder.iterdir():
        image = nib.load(path)
        twice = image.affine @ np.diag([2, 2, 2, 1])
        image.set_qform(twice, 1, update_affine=False)
        image.set_sform(image.affine, 1, update_affine=False)
        nib.save(nib.Nifti1Image(np.asanyarray(image.dataobj), None, image.header), path)
    loaded = load_case(case_of(folder))
    assert loaded.notes == (
        f"{NAME}: {NAME}_flair.nii.gz: the sform has voxels of 1 x 1 x 1 mm, the qform and pixdim of 2 x 2 x 2 mm; "
        "the sform is taken; make them agree",
    )
    np.testing.assert_array_equal(loaded.affine, plain)


def test_an_sform_and_a_qform_that_differ_by_rounding_or_only_in_place_are_not_noted(folder: Path) -> None:
    path = folder / f"{NAME}_t1.nii.gz"
    image = nib.load(path)
    image.set_qform(np.diag([-1.001, -1.001, 1.001, 1.0]), 1, update_affine=False)
    nib.save(image, path)
    assert read_nifti("A", path).note == ""
