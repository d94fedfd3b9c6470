"""Cases whose files are whole but not what they should be: refused by name, or noted where they may be right."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from changed_cases import case_of, change_files, change_images

from trainable.cases.case_files import CaseError
from trainable.cases.case_reader import load_case
from trainable.core.config import TrainConfig
from trainable.core.errors import InputError
from trainable.core.options import make_config, to_dict
from trainable.data.phantom import write_phantoms
from trainable.data.prepare import prepare_data
from trainable.model.unet3d import build_network
from trainable.predict import predict_cases
from trainable.training.checkpoint import save_checkpoint

NAME = "Phantom_00001"
WORDS_2023 = {"flair": "t2f", "t1": "t1n", "t1ce": "t1c", "t2": "t2w", "seg": "seg"}


@pytest.fixture
def folder(phantoms: Path, tmp_path: Path) -> Path:
    """The folder of a case that a test may spoil."""
    return shutil.copytree(phantoms / NAME, tmp_path / "data" / NAME)


def file_of(folder: Path, word: str) -> Path:
    return folder / f"{folder.name}_{word}.nii.gz"


def change(folder: Path, word: str, function: Callable[[Any], Any]) -> None:
    """Write one file of a case again, with other voxels."""
    change_files(folder, lambda voxels, affine: (function(voxels), affine), word)


def test_two_modalities_that_are_the_same_are_refused_and_both_named(folder: Path, tmp_path: Path) -> None:
    shutil.copy(file_of(folder, "t1"), file_of(folder, "t1ce"))
    with pytest.raises(InputError, match=rf"{NAME}: {NAME}_t1\.nii\.gz and {NAME}_t1ce\.nii\.gz are the same image"):
        prepare_data(TrainConfig(data_dir=folder.parent, cache_dir=tmp_path / "cache"), quiet=True)
    change(folder, "t1ce", lambda voxels: voxels + (voxels == voxels.max()))
    load_case(case_of(folder))


@pytest.mark.parametrize(
    ("flat", "found"),
    [
        (lambda voxels: (voxels != 0).astype(np.int16), "1 distinct value in"),
        (lambda voxels: np.where(voxels != 0, 0.5, 0).astype(np.float32), "1 distinct value in"),
        (lambda voxels: np.where(voxels != 0, voxels % 15 + 1, 0), "15 distinct values in"),
    ],
)
def test_a_modality_without_contrast_is_refused_with_the_count_of_its_values(
    folder: Path, flat: Callable[[Any], Any], found: str
) -> None:
    change(folder, "t1", flat)
    with pytest.raises(CaseError, match=rf"^{NAME}: {NAME}_t1\.nii\.gz has {found} the brain; expected 16 or more"):
        load_case(case_of(folder))


def test_images_of_few_values_are_allowed_if_there_are_16(folder: Path) -> None:
    def eight_bit(voxels: Any) -> Any:
        return np.ceil(voxels / voxels.max() * 100).astype(np.uint8)

    change_images(folder, eight_bit)
    assert load_case(case_of(folder)).image.max() == 100
    change(folder, "t1", lambda voxels: np.where(voxels != 0, voxels % 16 + 1, 0))
    assert len(np.unique(load_case(case_of(folder)).image[1])) == 17


def test_a_volume_of_few_voxels_may_have_few_values(folder: Path) -> None:
    change_files(folder, lambda voxels, affine: (np.pad(voxels[23:25, 23:26, 20:22], 1), affine))
    loaded = load_case(case_of(folder))
    assert loaded.image.shape == (4, 4, 5, 4)
    assert max(len(np.unique(channel)) for channel in loaded.image) <= 13


def test_a_tumour_in_the_air_is_refused_with_its_share_and_one_voxel_in_a_hundred_is_not(folder: Path) -> None:
    air = ~np.any(load_case(case_of(folder)).image, axis=0)

    def with_air(share: float) -> Callable[[Any], Any]:
        def spoilt(voxels: Any) -> Any:
            inside = np.flatnonzero(~air)[:10_000]
            outside = np.flatnonzero(air)[: round(10_000 * share / (1 - share))]
            label = np.zeros(voxels.size, np.uint8)
            label[inside] = 2
            label[outside] = 4
            return label.reshape(voxels.shape)

        return spoilt

    change(folder, "seg", with_air(0.25))
    with pytest.raises(CaseError, match=rf"^{NAME}: {NAME}_seg\.nii\.gz has 25\.0% of its tumour in the air.* flipped"):
        load_case(case_of(folder))
    change(folder, "seg", with_air(0.009))
    assert load_case(case_of(folder)).label is not None
    change(folder, "seg", np.zeros_like)
    load_case(case_of(folder))


def test_a_case_whose_truth_lies_in_the_air_is_predicted_without_scores(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(folder, "seg", lambda voxels: np.roll(voxels, 20, axis=2))
    config = make_config({"depth": 2, "base_channels": 4, "target_shape": [16, 16, 16], "device": "cpu"})
    save_checkpoint({"config": to_dict(config), "network": build_network(config).state_dict()}, tmp_path / "m.pth")
    predictions = predict_cases(tmp_path / "m.pth", [folder], tmp_path / "out")
    assert (predictions.scores, predictions.failed) == ({}, [])
    assert (tmp_path / "out" / f"{NAME}.nii.gz").exists()
    assert f"its truth cannot be used: {NAME}: {NAME}_seg.nii.gz has " in capsys.readouterr().out


def test_an_image_of_another_patient_or_a_mirrored_one_is_noted_by_name(folder: Path, phantoms: Path) -> None:
    other = phantoms / "Phantom_00002"
    shutil.copy(file_of(other, "flair"), file_of(folder, "flair"))  # the first one: the others agree, so it is named
    mine, others = (load_case(case_of(path)).image for path in (folder, other))
    a, b = mine[1] != 0, others[0] != 0
    dice = 2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b))
    (note,) = load_case(case_of(folder)).notes
    assert note.startswith(f"{NAME}: {NAME}_flair.nii.gz may show another brain than {NAME}_t1.nii.gz: the Dice ")
    assert f" is {dice:.3f}, expected 0.98 or more; of another patient, mirrored, or cut off?" in note
    assert dice < 0.97
    turned = shutil.copytree(other, folder.parent / other.name)
    change(turned, "t2", lambda voxels: voxels[::-1].copy())
    change(turned, "t1", lambda voxels: voxels[::-1].copy())
    (note,) = load_case(case_of(turned)).notes
    assert "_t1.nii.gz and Phantom_00002_t2.nii.gz may show another brain than Phantom_00002_flair.nii.gz" in note


def test_brains_that_differ_at_their_border_and_phantoms_of_any_shape_are_not_noted(
    folder: Path, tmp_path: Path
) -> None:
    change(folder, "t2", lambda voxels: np.where(np.arange(48)[:, None, None] > 9, voxels, 0))
    masks = [channel != 0 for channel in load_case(case_of(folder)).image]
    assert not np.array_equal(masks[0], masks[3])
    assert load_case(case_of(folder)).notes == ()
    for number, shape in enumerate([(32, 32, 32), (64, 64, 48)]):
        for path in write_phantoms(tmp_path / str(number), cases=2, shape=shape, workers=1):
            image = load_case(case_of(path)).image
            assert load_case(case_of(path)).notes == ()
            assert all(not np.array_equal(one, two) for one, two in combinations(image, 2))


def test_two_files_for_one_modality_that_differ_are_refused_and_both_named(folder: Path) -> None:
    before = load_case(case_of(folder))
    path = file_of(folder, "t1")
    image = nib.load(path)
    plain = path.with_suffix("")
    nib.save(image, plain)
    assert case_of(folder).files[-1] == plain
    np.testing.assert_array_equal(load_case(case_of(folder)).image, before.image)
    assert load_case(case_of(folder)).notes == ()
    voxels = np.asanyarray(image.dataobj)
    for other in (nib.Nifti1Image(voxels[::-1], image.affine), nib.Nifti1Image(voxels, image.affine * 2)):
        nib.save(other, plain)
        message = rf"^{NAME}: {NAME}_t1\.nii\.gz and {NAME}_t1\.nii are two files for one volume and differ"
        with pytest.raises(CaseError, match=message):
            load_case(case_of(folder))


def test_a_case_under_the_names_of_two_years_is_noted_if_they_agree_and_refused_if_not(folder: Path) -> None:
    for word, other in WORDS_2023.items():
        shutil.copy(file_of(folder, word), folder / f"{NAME}-{other}.nii.gz")
    case = case_of(folder)
    assert case.images[0] == file_of(folder, "flair")
    (note,) = load_case(case).notes
    assert note == f"{NAME}: {NAME}_flair.nii.gz and {NAME}-t2f.nii.gz are the same, named as in two years; " + (
        "the first is read"
    )
    nib.save(nib.Nifti1Image(np.zeros((48, 48, 40), np.uint8), load_case(case).affine), folder / f"{NAME}-seg.nii.gz")
    with pytest.raises(CaseError, match=rf"{NAME}_seg\.nii\.gz and {NAME}-seg\.nii\.gz are two files for one volume"):
        load_case(case)
