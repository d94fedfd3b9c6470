"""Whole-volume prediction against MONAI's sliding window and against networks whose answer is known."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.inferers import SlidingWindowInferer
from torch import Tensor, nn

from trainable.cases.case_files import find_case
from trainable.cases.case_reader import LoadedCase, load_case
from trainable.cases.grid import FileGrid
from trainable.core.config import TrainConfig
from trainable.core.errors import InputError
from trainable.core.options import to_dict
from trainable.data.cache import open_case
from trainable.data.prepare import Data
from trainable.evaluation.inference import (
    MIRRORS,
    on_full_grid,
    postprocess,
    predict_case,
    predict_label,
    predict_logits,
    save_label,
)
from trainable.model.unet3d import UNet3D, build_network
from trainable.predict import predict_cases
from trainable.training.checkpoint import save_checkpoint
from tune.cli.models import predict

CONFIG = TrainConfig(depth=3, base_channels=4, target_shape=(16, 12, 8))


class Pointwise(nn.Module):
    """Logits of a voxel from its own four intensities: as good by windows as at once."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv3d(4, 3, 1)
        self.sizes: set[tuple[int, ...]] = set()

    def forward(self, x: Tensor) -> list[Tensor]:
        self.sizes.add(tuple(x.shape[2:]))
        return [self.conv(x)]


class Ramp(nn.Module):
    """Logits that grow along the three axes of its input."""

    def forward(self, x: Tensor) -> list[Tensor]:
        d, h, w = (torch.arange(size, dtype=torch.float32) for size in x.shape[2:])
        ramp = d[:, None, None] + 10 * h[:, None] + 100 * w
        return [ramp.repeat(len(x), 3, 1, 1, 1)]


class FlairAbove(nn.Module):
    """WT if the z-score of FLAIR is above a half, TC if that of T1ce is, never ET."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.tensor([-0.5, -0.5, -1.0]))

    def forward(self, x: Tensor) -> list[Tensor]:
        chosen = torch.stack([x[:, 0], x[:, 2], torch.zeros_like(x[:, 0])], 1)
        return [chosen + self.bias[:, None, None, None]]


def volume(*size: int) -> Tensor:
    return torch.randn(1, 4, *size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("size", [(19, 15, 17), (16, 12, 8), (33, 12, 9), (9, 30, 5)])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.9])
def test_logits_equal_monai_s_gaussian_sliding_window_one_by_one(overlap: float, size: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    network, x = UNet3D(3, 4, 16).eval(), volume(*size)
    inferer = SlidingWindowInferer((16, 12, 8), sw_batch_size=1, overlap=overlap, mode="gaussian")
    with torch.inference_mode():
        expected = inferer(x, lambda window: network(window)[0])
    result = predict_logits(network, x, CONFIG.model_copy(update={"overlap": overlap}))
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)


def test_windows_leave_no_trace_if_a_voxel_s_logits_depend_only_on_it() -> None:
    network, x = Pointwise(), volume(27, 20, 19)
    torch.testing.assert_close(predict_logits(network, x, CONFIG), network.conv(x).detach(), atol=1e-4, rtol=1e-4)
    assert network.sizes == {(16, 12, 8)}


@pytest.mark.parametrize("size", [(9, 20, 5), (16, 12, 8), (3, 3, 3)])
def test_volume_smaller_than_the_window_is_padded_and_cut_back(size: tuple[int, int, int]) -> None:
    network, x = Pointwise(), volume(*size)
    result = predict_logits(network, x, CONFIG)
    assert tuple(result.shape) == (1, 3, *size)
    torch.testing.assert_close(result, network.conv(x).detach(), atol=1e-4, rtol=1e-4)


def test_mirror_averages_the_eight_mirrored_volumes() -> None:
    x = volume(16, 12, 8)  # one window
    ramp = Ramp()(x)[0]
    torch.testing.assert_close(predict_logits(Ramp(), x, CONFIG), ramp)
    result = predict_logits(Ramp(), x, CONFIG.model_copy(update={"mirror": True}))
    middle = 15 / 2 + 10 * 11 / 2 + 100 * 7 / 2  # a ramp and its mirror image average to their middle
    torch.testing.assert_close(result, torch.full_like(result, middle))
    assert len(set(MIRRORS)) == 8


def test_mirror_turns_each_prediction_back() -> None:
    network, x = Pointwise(), volume(27, 20, 19)
    config = CONFIG.model_copy(update={"mirror": True})
    torch.testing.assert_close(predict_logits(network, x, config), network.conv(x).detach(), atol=1e-4, rtol=1e-4)


def test_prediction_uses_no_dropout_and_keeps_no_graph() -> None:
    torch.manual_seed(0)
    network, x = UNet3D(3, 4, 16, dropout=0.5, deep_supervision=True).train(), volume(16, 12, 8)
    first, second = predict_logits(network, x, CONFIG), predict_logits(network, x, CONFIG)
    assert torch.equal(first, second)
    assert not first.requires_grad


def intensities(seed: int = 0) -> np.ndarray:
    """int16 (4, 24, 20, 18): a brain in [3:20, 5:18, 2:15], holed in one channel, 0 around."""
    rng = np.random.default_rng(seed)
    image = np.zeros((4, 24, 20, 18), np.int16)
    image[:, 3:20, 5:18, 2:15] = rng.integers(1, 2000, (4, 17, 13, 13))
    image[0, 8:11, 8:11, 8:11] = 0
    return image


def loaded(image: np.ndarray) -> LoadedCase:
    """A case with these images, and voxels of 1 mm."""
    affine = np.diag([-1.0, -1.0, 1.0, 1.0])
    return LoadedCase(image, None, affine, np.dtype(np.uint8), FileGrid(image.shape[1:], affine))


def test_label_follows_from_the_z_scores() -> None:
    image = intensities()
    mean = np.array([image[c][image[c] != 0].mean() for c in range(4)], np.float32)
    std = np.array([image[c][image[c] != 0].std() for c in range(4)], np.float32)
    z = (image - mean[:, None, None, None]) / std[:, None, None, None] * (image != 0)
    expected = np.where(z[2] > 0.5, 1, np.where(z[0] > 0.5, 2, 0))
    label = predict_label(FlairAbove(), image, mean, std, CONFIG)
    assert label.dtype == np.uint8
    assert np.array_equal(label, expected)
    case = loaded(image)
    assert np.array_equal(predict_case(FlairAbove(), case, CONFIG), expected)


def test_case_is_0_outside_the_brain_s_box() -> None:
    network = FlairAbove()
    nn.init.constant_(network.bias, 100)  # everything is tumour
    label = predict_case(network, loaded(intensities()), CONFIG)
    expected = np.zeros((24, 20, 18), np.uint8)
    expected[3:20, 5:18, 2:15] = 4
    assert label.dtype == np.uint8
    assert np.array_equal(label, expected)


def blobs() -> np.ndarray:
    """Label 2 in three places: 27 voxels with ET inside, 3 voxels joined by corners, and 1 voxel of TC."""
    label = np.zeros((12, 12, 12), np.uint8)
    label[1:4, 1:4, 1:4] = 2
    label[2, 2, 1:4] = 4
    for i in range(3):
        label[6 + i, 6 + i, 6 + i] = 2
    label[11, 0, 0] = 1
    return label


@pytest.mark.parametrize(("least", "left"), [(0, 31), (1, 31), (2, 30), (3, 30), (4, 27), (27, 27), (28, 0)])
def test_tumours_below_min_component_are_removed(least: int, left: int) -> None:
    label = blobs()
    result = postprocess(label, CONFIG.model_copy(update={"min_component": least}))
    assert result.dtype == np.uint8
    assert np.count_nonzero(result) == left
    assert np.array_equal(result[result != 0], label[result != 0])
    assert np.count_nonzero(label) == 31  # the input is not changed


@pytest.mark.parametrize(("threshold", "kept"), [(0, True), (3, True), (4, False)])
def test_et_below_its_threshold_becomes_tc(threshold: int, kept: bool) -> None:
    label = blobs()
    result = postprocess(label, CONFIG.model_copy(update={"et_threshold": threshold}))
    assert np.array_equal(result, label if kept else np.where(label == 4, 1, label))


def test_et_is_counted_after_small_tumours_are_removed() -> None:
    label = blobs()
    label[11, 0, 0] = 4
    options = {"min_component": 2, "et_threshold": 4}
    assert not (postprocess(label, CONFIG.model_copy(update=options)) == 4).any()
    assert (postprocess(label, CONFIG.model_copy(update={"et_threshold": 4})) == 4).sum() == 4


def test_prediction_is_postprocessed_as_the_config_says() -> None:
    image = intensities()
    mean, std = np.full(4, 1000, np.float32), np.full(4, 500, np.float32)
    plain = predict_label(FlairAbove(), image, mean, std, CONFIG)
    assert plain.any()
    config = CONFIG.model_copy(update={"min_component": plain.size})
    assert not predict_label(FlairAbove(), image, mean, std, config).any()


def test_crop_goes_back_to_its_place_in_the_full_volume(phantoms: Path, prepared: Data) -> None:
    name = prepared.split.val[0]
    case = open_case(prepared.folder, name)
    assert max(case.offset) > 0
    truth = load_case(find_case(phantoms / name, need_seg=True)).label
    assert np.array_equal(on_full_grid(np.asarray(case.label), case), truth)


def test_saved_label_is_read_back_on_the_same_grid(tmp_path: Path) -> None:
    label = np.random.default_rng(0).choice(np.array([0, 1, 2, 4], np.uint8), (6, 7, 5))
    turn = np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([-1, -1, 2.5])
    affine[:3, 3] = (-3, 239, 0.5)
    save_label(label, affine, tmp_path / "new" / "folder" / "case_seg.nii.gz")
    image = nib.load(tmp_path / "new" / "folder" / "case_seg.nii.gz")
    assert image.get_data_dtype() == np.uint8
    assert np.array_equal(np.asarray(image.dataobj), label)
    for result, code in (image.get_sform(coded=True), image.get_qform(coded=True)):
        np.testing.assert_allclose(result, affine, atol=1e-5)
        assert code == 1
    assert image.header.get_xyzt_units()[0] == "mm"
    assert image.header.get_zooms() == pytest.approx((1, 1, 2.5))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The checkpoint of a network that learnt nothing."""
    path = tmp_path / "model.pth"
    save_checkpoint({"config": to_dict(CONFIG), "network": build_network(CONFIG).state_dict()}, path)
    return path


@pytest.fixture
def three(phantoms: Path, tmp_path: Path) -> list[Path]:
    """The folders of three cases that a test may spoil."""
    names = [f"Phantom_{number:05d}" for number in range(3)]
    return [shutil.copytree(phantoms / name, tmp_path / "data" / name) for name in names]


def test_bad_cases_keep_no_others_from_being_predicted_and_scored(
    model: Path, three: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lacking, cut, good = three
    (lacking / f"{lacking.name}_t1.nii.gz").unlink()
    file = cut / f"{cut.name}_t2.nii.gz"
    file.write_bytes(file.read_bytes()[:1000])
    for given in (three, [three[0].parent]):
        out = tmp_path / str(len(given))
        with pytest.raises(InputError) as caught:
            predict(model, given, out, pictures=True)
        first, *listing = str(caught.value).splitlines()
        assert first == "2 of 3 cases cannot be used, the others are predicted:"
        assert [line.split(":")[0].strip() for line in listing] == [lacking.name, cut.name]
        assert f"{cut.name} cannot be used\n" in capsys.readouterr().out
        names = {"scores.json", "scores.csv", f"{good.name}.nii.gz", f"{good.name}.png"}
        assert {path.name for path in out.iterdir()} == names
        assert set(json.loads((out / "scores.json").read_text())["cases"]) == {good.name}


def test_if_no_case_can_be_used_no_prediction_is_reported(model: Path, three: list[Path], tmp_path: Path) -> None:
    (three[0] / f"{three[0].name}_t1.nii.gz").unlink()
    with pytest.raises(InputError, match=rf"^1 of 1 cases cannot be used:\n  {three[0].name}: .*_t1.nii.gz missing"):
        predict(model, three[:1], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_two_cases_of_one_name_are_refused_with_both_places_and_nothing_is_predicted(
    model: Path, three: list[Path], tmp_path: Path
) -> None:
    other = shutil.copytree(three[1], tmp_path / "elsewhere" / three[1].name)
    message = f"the name {other.name} is given twice, {three[1]} and {other}, and one prediction would overwrite"
    with pytest.raises(InputError, match=message):
        predict_cases(model, [three[0].parent, other], tmp_path / "out")
    assert not (tmp_path / "out").exists()
