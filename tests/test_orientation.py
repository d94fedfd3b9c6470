"""Cases are turned to LPS when they are read, and predictions back onto the grid of the files."""

from __future__ import annotations

import shutil
from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from changed_cases import case_of, change_files, turned

from trainable import cli
from trainable.cases.case_reader import load_case
from trainable.cases.grid import FileGrid
from trainable.cases.orientation import from_lps, lps_affine, lps_shape, lps_spacing, to_lps
from trainable.core.config import TrainConfig
from trainable.core.options import to_dict
from trainable.data.cache import ARRAYS, open_case
from trainable.data.prepare import prepare_data
from trainable.evaluation.inference import on_file_grid, on_full_grid
from trainable.model.unet3d import build_network
from trainable.predict import predict_cases
from trainable.training.checkpoint import save_checkpoint

ALL_CODES = ["".join(codes) for order in permutations(("LR", "PA", "SI")) for codes in product(*order)]
CONFIG = TrainConfig(depth=2, base_channels=4, target_shape=(16, 16, 16), overlap=0.25, device="cpu")


@pytest.mark.parametrize("codes", ALL_CODES)
def test_all_48_orientations_are_turned_to_lps_and_back_bit_for_bit(codes: str) -> None:
    voxels = np.random.default_rng(0).integers(0, 100, (5, 6, 7))
    affine = np.array([[-1.0, 0, 0, 3], [0, -2, 0, 50], [0, 0, 3, -7], [0, 0, 0, 1]])
    stored, stored_affine = turned(codes)(voxels, affine)
    assert "".join(nib.aff2axcodes(stored_affine)) == codes
    grid = FileGrid(stored.shape, stored_affine)
    np.testing.assert_array_equal(to_lps(stored, stored_affine), voxels)
    np.testing.assert_allclose(lps_affine(grid), affine)
    assert lps_shape(grid) == (5, 6, 7)
    assert lps_spacing(stored_affine) == (1, 2, 3)
    np.testing.assert_array_equal(from_lps(voxels, grid), stored)


def test_an_oblique_volume_takes_the_closest_axes_and_keeps_its_voxels() -> None:
    angle = np.deg2rad(20)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn  # close to RAS
    voxels = np.arange(24).reshape(2, 3, 4)
    np.testing.assert_array_equal(to_lps(voxels, affine), voxels[::-1, ::-1])
    place = lps_affine(FileGrid(voxels.shape, affine)) @ [0, 0, 2, 1]
    np.testing.assert_allclose(place, affine @ [1, 2, 2, 1])


@pytest.mark.parametrize("codes", ["PIR", "RAS", "SAL"])
def test_a_case_in_another_orientation_is_prepared_as_the_same_arrays(
    codes: str, phantoms: Path, tmp_path: Path
) -> None:
    cases = {}
    for name in ("LPS", codes):
        folder = shutil.copytree(phantoms / "Phantom_00001", tmp_path / name / "Phantom_00001")
        change_files(folder, turned(name))
        prepare_data(TrainConfig(data_dir=tmp_path / name, cache_dir=tmp_path / f"{name}.cache"), quiet=True)
        cases[name] = open_case(tmp_path / f"{name}.cache", "Phantom_00001")
    for file in ARRAYS:
        one, other = (tmp_path / f"{name}.cache" / "Phantom_00001" / file for name in cases)
        assert one.read_bytes() == other.read_bytes()
    np.testing.assert_array_equal(cases[codes].affine, cases["LPS"].affine)
    stored = nib.load(tmp_path / codes / "Phantom_00001" / "Phantom_00001_seg.nii.gz")
    label = on_file_grid(on_full_grid(np.asarray(cases[codes].label), cases[codes]), cases[codes].file_grid)
    np.testing.assert_array_equal(label, np.asanyarray(stored.dataobj))
    np.testing.assert_array_equal(cases[codes].file_grid.affine, stored.affine)


def test_prediction_of_a_turned_case_is_the_turned_prediction_with_the_same_scores(
    phantoms: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model.pth"
    grid = {"orientation": "LPS", "spacing": [1.0, 1.0, 1.0], "resample": False}
    save_checkpoint({"config": to_dict(CONFIG), "network": build_network(CONFIG).state_dict(), "grid": grid}, model)
    results = {}
    for codes in ("LPS", "PIR"):
        folder = shutil.copytree(phantoms / "Phantom_00001", tmp_path / codes / "Phantom_00001")
        change_files(folder, turned(codes))
        scores = predict_cases(model, [folder], tmp_path / f"out_{codes}").scores["Phantom_00001"]
        results[codes] = nib.load(tmp_path / f"out_{codes}" / "Phantom_00001.nii.gz"), scores
    (plain, plain_scores), (pir, pir_scores) = results["LPS"], results["PIR"]
    label, affine = turned("PIR")(np.asanyarray(plain.dataobj), plain.affine)
    assert label.any()
    np.testing.assert_array_equal(np.asanyarray(pir.dataobj), label)
    np.testing.assert_array_equal(pir.affine, affine)
    assert pir_scores == plain_scores


def test_test_only_writes_predictions_in_the_orientation_of_the_files(phantoms: Path, tmp_path: Path) -> None:
    data, out = shutil.copytree(phantoms, tmp_path / "data"), tmp_path / "out"
    options = f"--data_dir {data} --output_dir {out} --device cpu --depth 2 --base_channels 4 --target_shape 16 16 16"
    assert cli.main(f"{options} --epochs 1 --patches_per_epoch 2 --num_workers 0 --lr 0.01".split()) == 0
    test = f"--resume {out} --test_only --save_predictions"
    assert cli.main(test.split()) == 0
    (file,) = (out / "predictions").iterdir()
    plain, name = nib.load(file), file.name.removesuffix(".nii.gz")
    label, affine = turned("RIA")(np.asanyarray(plain.dataobj), plain.affine)
    change_files(data / name, turned("RIA"))
    assert cli.main(test.split()) == 0
    np.testing.assert_array_equal(np.asanyarray(nib.load(file).dataobj), label)
    np.testing.assert_array_equal(nib.load(file).affine, affine)


def test_files_of_one_case_must_have_one_orientation(phantoms: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(phantoms / "Phantom_00001", tmp_path / "Phantom_00001")
    change_files(folder, turned("RPS"), "t2")
    with pytest.raises(Exception, match=r"Phantom_00001_t2\.nii\.gz has affine"):
        load_case(case_of(folder))
