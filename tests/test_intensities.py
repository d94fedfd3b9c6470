"""Backgrounds other than 0, hot voxels and lost grey levels are said, made right or refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from changed_cases import case_of, change_files, change_images
from helpers import voxtune_here

from trainable.cases.case_files import CaseError
from trainable.cases.case_reader import load_case
from trainable.cases.intensities import background_of, image_to_int16
from trainable.core.config import TrainConfig
from trainable.core.errors import InputError
from trainable.core.options import make_config, to_dict
from trainable.data.cache import open_case
from trainable.data.prepare import prepare_data
from trainable.model.unet3d import build_network
from trainable.predict import predict_cases
from trainable.training.checkpoint import save_checkpoint


@pytest.fixture
def folder(phantoms: Path, tmp_path: Path) -> Path:
    """The folder of a case that a test may spoil."""
    return shutil.copytree(phantoms / "Phantom_00001", tmp_path / "data" / "Phantom_00001")


def brain(shape: tuple[int, int, int] = (24, 20, 18)) -> Any:
    """An int16 ellipsoid of 1 to 2000 on a background of 0, which touches all six faces."""
    places = np.meshgrid(*[np.linspace(-1, 1, size) for size in shape], indexing="ij")
    inside = sum(place**2 for place in places) <= 1.01
    return np.where(inside, np.random.default_rng(0).integers(1, 2001, shape), 0).astype(np.int16)


def minus_one_to_one(voxels: Any) -> Any:
    return voxels.astype(np.float32) / voxels.max() * 2 - 1


def z_scores(voxels: Any) -> Any:
    values = voxels[voxels != 0]
    return ((voxels - values.mean()) / values.std()).astype(np.float32)


def correlations(image: Any, other: Any) -> list[float]:
    """How alike the brains of two images of 4 channels are: 1 if they differ by a factor alone."""
    pairs = zip(image, other, strict=True)
    return [float(np.corrcoef(a[b != 0], b[b != 0])[0, 1]) for a, b in pairs]


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (minus_one_to_one, r"-1\.0, which has \d+% of its outer faces; expected 0.*train with --background -1\.0"),
        (lambda voxels: voxels + np.int16(7), r"7, which has \d+% of its outer faces"),
        (z_scores, r"-\d\.\d+, which has \d+% .*--background auto if it is another one in each image"),
    ],
)
def test_a_background_other_than_0_is_refused_with_what_it_is(folder: Path, change: Any, found: str) -> None:
    change_images(folder, change)
    with pytest.raises(CaseError, match=rf"^Phantom_00001: Phantom_00001_flair\.nii\.gz has a background of {found}"):
        load_case(case_of(folder))


def test_background_option_makes_that_value_0_in_the_cache(folder: Path, tmp_path: Path) -> None:
    plain = load_case(case_of(folder))
    for change, background in ((minus_one_to_one, "-1"), (lambda voxels: voxels - np.int16(9), "-10")):
        change_images(folder, change)
        config = make_config({"data_dir": folder.parent, "cache_dir": tmp_path / background, "background": background})
        case = open_case(prepare_data(config, quiet=True).folder, folder.name)
        box = tuple(slice(low, low + size) for low, size in zip(case.offset, case.label.shape, strict=True))
        np.testing.assert_array_equal(case.image != 0, plain.image[:, *box] != 0)
        assert min(correlations(case.image, plain.image[:, *box])) > 0.9999


def test_auto_takes_each_image_s_own_background(folder: Path) -> None:
    plain = load_case(case_of(folder))
    change_images(folder, z_scores)
    loaded = load_case(case_of(folder), background="auto")
    np.testing.assert_array_equal(loaded.image != 0, plain.image != 0)
    assert min(correlations(loaded.image, plain.image)) > 0.9999


def test_prepare_has_the_option_background_too(folder: Path) -> None:
    change_images(folder, z_scores)
    done = voxtune_here("prepare", folder.parent, "--background", "auto")
    assert (done.returncode, "prepared 1 cases" in done.stderr) == (0, True)
    done = voxtune_here("prepare", folder.parent, "--background", "air")
    assert done.returncode == 2
    assert "voxtune prepare: background is 'air'; expected a number or auto" in done.stderr


def test_predict_makes_the_background_0_as_the_training_did(folder: Path, tmp_path: Path) -> None:
    options = {"depth": 2, "base_channels": 4, "target_shape": [16, 16, 16], "device": "cpu", "background": "auto"}
    config = make_config(options)
    save_checkpoint({"config": to_dict(config), "network": build_network(config).state_dict()}, tmp_path / "m.pth")
    predictions = []
    for change in (lambda voxels: voxels, z_scores):
        change_images(folder, change)
        predict_cases(tmp_path / "m.pth", [folder], tmp_path / "out")
        predictions.append(np.asanyarray(nib.load(tmp_path / "out" / "Phantom_00001.nii.gz").dataobj))
    plain, scored = predictions
    assert plain.any()
    assert np.mean(plain == scored) > 0.999
    assert not scored[0].any()


def test_a_cache_of_another_background_is_prepared_anew(folder: Path, tmp_path: Path) -> None:
    config = TrainConfig(data_dir=folder.parent, cache_dir=tmp_path / "cache")
    prepare_data(config, quiet=True)
    with pytest.raises(InputError, match=r"background of 0, .* expected -1"):
        prepare_data(config.model_copy(update={"background": -1.0}), quiet=True)


@pytest.mark.parametrize("value", ["air", "nan", True, None, [1]])
def test_a_background_that_is_neither_number_nor_auto_is_refused(value: Any) -> None:
    with pytest.raises(InputError, match=r"background is .*; expected a number or auto"):
        make_config({"background": value})
    assert make_config({"background": "-0.5"}).background == -0.5
    assert make_config({"background": "auto"}).background == "auto"


def test_noise_around_a_head_is_refused_as_not_skull_stripped(folder: Path) -> None:
    rng = np.random.default_rng(0)
    change_images(folder, lambda voxels: (voxels + rng.integers(1, 40, voxels.shape)).astype(np.int16))
    for background in (0.0, "auto"):
        with pytest.raises(CaseError, match=r"_flair\.nii\.gz has no constant background: .* skull-strip the case"):
            load_case(case_of(folder), background)


@pytest.mark.parametrize("kept", [1.0, 0.9, 0.75])
def test_a_brain_that_fills_its_volume_has_a_background_of_0(kept: float) -> None:
    whole = brain((48, 40, 36))
    box = tuple(slice(round(size * (1 - kept) / 2), round(size * (1 + kept) / 2)) for size in whole.shape)
    value, share = background_of(whole[box])
    assert value == 0
    assert share >= 0.25
    np.testing.assert_array_equal(image_to_int16("A", whole[box], 0.0)[0], whole[box])


def test_whole_numbers_within_int16_are_kept_and_an_8_bit_image_is_allowed() -> None:
    for voxels in (brain(), brain().astype(np.float32), (brain() // 10).astype(np.uint8)):
        result, note = image_to_int16("A", voxels, 0.0)
        np.testing.assert_array_equal(result, voxels)
        assert note == ""


def test_without_hot_voxels_the_largest_magnitude_becomes_32767() -> None:
    voxels = brain() * 0.37
    result, note = image_to_int16("A", voxels, 0.0)
    np.testing.assert_array_equal(result, np.rint(voxels * (32767 / voxels.max())))
    assert note == ""


def test_hot_voxels_are_clipped_and_said_and_leave_the_brain_its_grey_levels(folder: Path) -> None:
    plain = load_case(case_of(folder))

    def heat(voxels: Any) -> Any:
        hot = voxels.astype(np.float32) + np.float32(0.25) * (voxels > 0)
        hot[24, 24, 20:22] = 5e6
        return hot

    change_images(folder, heat)
    loaded = load_case(case_of(folder))
    assert len(loaded.notes) == 4
    assert loaded.notes[1].startswith("Phantom_00001: Phantom_00001_t1.nii.gz: 2 voxels of up to 5e+06 are clipped to ")
    for image, other in zip(loaded.image, plain.image, strict=True):
        assert image.max() == 32767
        cold = (other != 0) & (image < 32767)
        assert len(np.unique(image[cold])) >= len(np.unique(other[cold])) > 256
        assert np.corrcoef(image[cold], other[cold])[0, 1] > 0.9999


def test_too_many_hot_voxels_to_be_clipped_are_refused_with_the_grey_levels_they_leave() -> None:
    voxels = brain().astype(np.float32)
    voxels[10:13, 9:12, 8:11] = 5e6
    with pytest.raises(CaseError, match=r"A has \d+ grey levels after scaling to int16; expected 256 or more"):
        image_to_int16("A", voxels, 0.0)
    few = np.where(brain() > 0, brain() % 100 + 1, 0) * 0.5  # 8-bit, with a slope: nothing is lost
    assert len(np.unique(image_to_int16("A", few, 0.0)[0])) == 101


def test_labels_that_are_whole_but_for_rounding_are_rounded_and_others_refused(folder: Path) -> None:
    plain = load_case(case_of(folder))
    almost = np.array([0, 1.0039, 2.0001, 0, 3.9999], np.float32)
    change_files(folder, lambda voxels, affine: (almost[voxels], affine), "seg")
    loaded = load_case(case_of(folder))
    assert loaded.label is not None
    np.testing.assert_array_equal(loaded.label, plain.label)
    assert loaded.label.dtype == np.uint8
    change_files(folder, lambda voxels, affine: (np.where(voxels == voxels.max(), 3.97, voxels), affine), "seg")
    with pytest.raises(CaseError, match=r"_seg\.nii\.gz has non-integer labels such as \[3\.97"):
        load_case(case_of(folder))
