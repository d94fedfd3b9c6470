"""Augmentation: each transform by its effect, with its probability at 1 and the others at 0."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from trainable.core.brats import labels_to_regions, labels_to_regions_torch
from trainable.core.config import TrainConfig
from trainable.data.augment import augment, blur, gamma_correct
from trainable.data.normalise import normalise
from trainable.data.spatial import crop_transformed, transform_matrix

KINDS = ("flip", "rotate", "zoom", "scale", "shift", "gamma", "noise", "blur", "lowres", "contrast", "brightness")
SHAPE = (14, 20, 26)


def only(*kinds: str, **options: Any) -> TrainConfig:
    return TrainConfig(**{f"{kind}_prob": float(kind in kinds) for kind in KINDS}, **options)


def sample(seed: int = 0, shape: tuple[int, int, int] = SHAPE) -> tuple[Tensor, Tensor]:
    """A batch of one: noise in a brain with background on two sides, and nested targets."""
    rng = np.random.default_rng(seed)
    image = rng.standard_normal((1, 4, *shape)).astype(np.float32)
    image[:, :, :3] = 0
    image[..., -4:] = 0
    label = rng.choice(np.array([0, 1, 2, 4], np.uint8), (1, *shape))
    return torch.from_numpy(image), labels_to_regions_torch(torch.from_numpy(label))


def augmented(config: TrainConfig, index: int = 0, epoch: int = 1) -> tuple[Tensor, Tensor]:
    return augment_one(*sample(), config, epoch, index)


def augment_one(x: Tensor, y: Tensor, config: TrainConfig, epoch: int, index: int) -> tuple[Tensor, Tensor]:
    """augment on a batch of one, which it is given a copy of."""
    image, target = augment(x[0].clone(), y[0], config, epoch, index)
    return image[None], target[None]


def balls() -> tuple[Tensor, Tensor, NDArray[np.float64]]:
    """Three smooth balls, one a channel and a region, and their offsets (3 balls, 3 axes) from the centre."""
    shape = (30, 40, 52)
    offsets = np.array([[5.0, 0, 0], [0, 9.0, 0], [0, 0, 13.0]])
    at = np.indices(shape) - (np.array(shape)[:, None, None, None] - 1) / 2
    squares = ((at[None] - offsets[:, :, None, None, None]) ** 2).sum(1)
    image = np.exp(-squares / (2 * 1.5**2))
    image[image < 1e-3] = 0
    x = torch.from_numpy(np.concatenate([image, image[:1]]).astype(np.float32))[None]
    return x, (x[:, :3] > 0.05).float(), offsets


def offsets_of(volumes: Tensor) -> NDArray[np.float64]:
    """Centre of mass of each volume, from the centre."""
    middle = (np.array(volumes.shape[1:]) - 1) / 2
    return np.array([ndimage.center_of_mass(volume.numpy()) for volume in volumes]) - middle


def test_normalised_image_is_the_z_score_of_the_non_zero_voxels() -> None:
    rng = np.random.default_rng(0)
    raw = rng.integers(1, 3000, (2, 4, 6, 7, 8)).astype(np.int16)
    raw[:, :, :2] = 0
    inside = [[raw[n, c][raw[n, c] != 0].astype(float) for c in range(4)] for n in range(2)]
    mean, std = (np.array([[f(v) for v in row] for row in inside], np.float32) for f in (np.mean, np.std))
    out = normalise(*(torch.from_numpy(each) for each in (raw, mean, std)))
    expected = (raw - mean[..., None, None, None]) / std[..., None, None, None] * (raw != 0)
    assert out.dtype == torch.float32
    np.testing.assert_allclose(out.numpy(), expected, atol=1e-5)
    assert not out[:, :, :2].any()
    result = out[1, 2][out[1, 2] != 0]
    assert (result.mean().item(), result.std(correction=0).item()) == pytest.approx((0, 1), abs=1e-4)


def test_targets_are_the_regions_of_the_labels() -> None:
    label = np.random.default_rng(0).choice(np.array([0, 1, 2, 4], np.uint8), (2, 5, 6, 7))
    target = labels_to_regions_torch(torch.from_numpy(label))
    assert target.dtype == torch.bool
    assert np.array_equal(target.numpy(), np.stack([labels_to_regions(each) for each in label]))


def test_nothing_changes_if_every_probability_is_0() -> None:
    x, y = augmented(only())
    assert torch.equal(x, sample()[0])
    assert torch.equal(y, sample()[1])


def test_flip_turns_image_and_target_alike() -> None:
    x, y = augmented(only("flip"))
    assert torch.equal(x, sample()[0].flip(2, 3, 4))
    assert torch.equal(y, sample()[1].flip(2, 3, 4))


def test_each_axis_flips_by_itself() -> None:
    config = only().model_copy(update={"flip_prob": 0.5})
    seen = set()
    for index in range(60):
        x, y = augmented(config, index)
        axes = [a for n in range(8) if torch.equal(x, sample()[0].flip(a := [i + 2 for i in range(3) if n >> i & 1]))]
        assert len(axes) == 1
        assert torch.equal(y, sample()[1].flip(axes[0]))
        seen.add(tuple(axes[0]))
    assert len(seen) == 8


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("degrees", [-15, 7, 90])
def test_rotation_equals_scipy_s_on_a_volume_that_is_no_cube(axis: int, degrees: float) -> None:
    x, y = sample()
    angles = np.zeros(3)
    angles[axis] = math.radians(degrees)
    image, target = crop_transformed(x[0], y[0], transform_matrix(angles, 1.0), (0, 0, 0), SHAPE)
    plane = [other for other in range(3) if other != axis]
    turn = np.eye(3)
    turn[np.ix_(plane, plane)] = ndimage_turn(degrees)
    centre = (np.array(SHAPE) - 1) / 2
    for result, given, order in [(image, x[0], 1), (target, y[0], 0)]:
        for volume, source in zip(result.numpy(), given.numpy(), strict=True):
            expected = ndimage.affine_transform(
                source.astype(float), turn, centre - turn @ centre, order=order, mode="grid-constant"
            )
            differs = np.abs(volume - expected) > 1e-3
            assert differs.mean() < (0.002 if order == 0 else 1e-9)  # nearest: ties between two voxels


def ndimage_turn(degrees: float) -> NDArray[np.float64]:
    """Output to input coordinates in a plane: the picture turns from the second axis to the first."""
    angle = math.radians(degrees)
    return np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])


def test_rotation_keeps_lengths_and_angles_and_stays_within_15_degrees_an_axis() -> None:
    x, y, before = balls()
    turned = []
    for index in range(12):
        image, target = augment_one(x, y, only("rotate"), 1, index)
        after = offsets_of(image[0, :3])
        matrix = np.linalg.solve(before, after).T  # after = before @ matrix.T
        np.testing.assert_allclose(matrix @ matrix.T, np.eye(3), atol=0.02)
        assert np.linalg.det(matrix) == pytest.approx(1, abs=0.02)
        d, h, w = np.degrees(euler(matrix.T))  # transposed: from output to input
        assert max(abs(d), abs(h), abs(w)) < 15.5
        turned.append((d, h, w))
        np.testing.assert_allclose(offsets_of(target[0]), after, atol=0.6)  # nearest: half a voxel
    assert (np.abs(turned).max(0) > 8).all()  # each axis does turn


def euler(matrix: NDArray[np.float64]) -> tuple[float, float, float]:
    """Angles of a product of turns about depth, height, width, each as in `ndimage_turn`."""
    # M = D(a) H(b) W(c), whose first row is (cos b cos c, -cos b sin c, -sin b).
    height = -math.asin(matrix[0, 2])
    width = math.atan2(-matrix[0, 1], matrix[0, 0])
    depth = math.atan2(-matrix[1, 2], matrix[2, 2])
    return depth, height, width


def test_zoom_magnifies_every_axis_by_up_to_a_fifth() -> None:
    x, y, before = balls()
    zooms = []
    for index in range(20):
        image, target = augment_one(x, y, only("zoom"), 1, index)
        after = offsets_of(image[0, :3])
        zoom = after.trace() / before.trace()
        np.testing.assert_allclose(after, zoom * before, atol=0.1)
        np.testing.assert_allclose(offsets_of(target[0]), after, atol=0.6)  # nearest: half a voxel
        zooms.append(zoom)
    assert 0.79 < min(zooms) < 0.9
    assert 1.1 < max(zooms) < 1.21


def test_zoom_of_one_and_a_half_stretches_distances_from_the_centre() -> None:
    x, y, before = balls()
    image, _ = crop_transformed(x[0], y[0], transform_matrix(np.zeros(3), 1.5), (0, 0, 0), (30, 40, 52))
    np.testing.assert_allclose(offsets_of(image[:3]), 1.5 * before, atol=0.02)


def test_strength_scales_the_rotation_s_range() -> None:
    x, y, before = balls()
    weak, full = (
        np.linalg.solve(before, offsets_of(augment_one(x, y, only("rotate", augment_strength=s), 1, 3)[0][0, :3]))
        for s in (0.5, 1.0)
    )
    assert np.degrees(euler(weak)) * 2 == pytest.approx(np.degrees(euler(full)), abs=0.6)


def test_target_stays_0_or_1_and_its_regions_nested() -> None:
    for index in range(10):
        x, y = augmented(only(*KINDS, augment_strength=3), index)
        assert set(y.unique().tolist()) <= {False, True}
        assert (y[:, 0] >= y[:, 1]).all()
        assert (y[:, 1] >= y[:, 2]).all()
        assert x.isfinite().all()
        assert x.shape == sample()[0].shape
        assert (x.dtype, y.dtype) == (torch.float32, torch.bool)


@pytest.mark.parametrize("kind", ["scale", "shift", "gamma", "noise", "blur"])
def test_background_stays_0_and_the_target_as_it_is(kind: str) -> None:
    x, y = augmented(only(kind))
    inside = sample()[0] != 0
    assert not x[~inside].any()
    assert (x != sample()[0])[inside].float().mean() > 0.9
    assert torch.equal(y, sample()[1])


@pytest.mark.parametrize("sigma", [0.4, 0.75, 1.0])
def test_blur_equals_scipy_s(sigma: float) -> None:
    x = sample()[0][0]
    radius = max(1, round(3 * sigma))
    expected = [ndimage.gaussian_filter(c, sigma, mode="constant", radius=radius) for c in x.double().numpy()]
    np.testing.assert_allclose(blur(x, sigma).numpy(), np.stack(expected), atol=1e-5)


def test_blur_of_a_patch_is_between_half_a_voxel_and_one_wide() -> None:
    x = torch.ones(1, 4, 21, 21, 21)
    x[:, :, 10, 10, 10] += 1000
    widths = []
    for index in range(20):
        out = augment_one(x, torch.zeros(1, 3, 21, 21, 21), only("blur"), 1, index)[0]
        profile = out[0, 0, 5:16, 10, 10].double() - 1
        widths.append((profile * torch.arange(-5, 6) ** 2).sum().div(profile.sum()).sqrt().item())
    # Sampled on voxels, a Gaussian of 0.5 has a deviation of 0.46; cut at 3 sigma, one of 1 has 0.99.
    assert 0.4 < min(widths) < 0.7
    assert 0.8 < max(widths) < 1.0


def test_noise_has_up_to_a_tenth_of_a_deviation() -> None:
    before = sample()[0]
    stds = []
    for index in range(40):
        noise = (augmented(only("noise"), index)[0] - before)[before != 0]
        assert noise.mean().item() == pytest.approx(0, abs=0.01)
        stds.append(noise.std().item())
    assert max(stds) < 0.102
    assert 0.03 < sum(stds) / 40 < 0.07  # uniform from 0 to .1


def test_noise_differs_between_voxels_channels_and_epochs() -> None:
    before = sample()[0]
    first, second = (augmented(only("noise"), 0, epoch)[0] - before for epoch in (1, 2))
    inside = (before != 0).all(1)[0]
    rows = torch.cat([first[0][:, inside], second[0][:, inside]])
    assert torch.corrcoef(rows).fill_diagonal_(0).abs().max() < 0.15


def test_scale_multiplies_each_channel_by_up_to_a_tenth() -> None:
    before = sample()[0][0]
    factors = []
    for index in range(20):
        after = augmented(only("scale"), index)[0][0]
        for channel in range(4):
            ratio = (after[channel] / before[channel])[before[channel] != 0]
            assert ratio.max() - ratio.min() < 1e-5
            factors.append(ratio.mean().item())
    assert len({round(factor, 6) for factor in factors}) > 70
    assert 0.899 < min(factors) < 0.92
    assert 1.08 < max(factors) < 1.101


def test_shift_adds_up_to_a_tenth_to_each_channel() -> None:
    before = sample()[0][0]
    shifts = []
    for index in range(20):
        after = augmented(only("shift"), index)[0][0]
        for channel in range(4):
            difference = (after[channel] - before[channel])[before[channel] != 0]
            assert difference.max() - difference.min() < 1e-5
            shifts.append(difference.mean().item())
    assert len({round(shift, 6) for shift in shifts}) > 70
    assert -0.101 < min(shifts) < -0.08
    assert 0.08 < max(shifts) < 0.101


def test_gamma_keeps_each_channel_s_minimum_and_maximum_and_bends_between() -> None:
    before = sample()[0][0]
    gammas = []
    for index in range(20):
        after = augmented(only("gamma"), index)[0][0]
        for old, new in zip(before, after, strict=True):
            assert (new.min().item(), new.max().item()) == pytest.approx((old.min().item(), old.max().item()), abs=1e-5)
        unit = [(v - v.min()) / (v.max() - v.min()) for v in (before[1], after[1])]
        middle = (before[1] != 0) & (unit[0] > 0.2) & (unit[0] < 0.8)
        result = unit[1][middle].log() / unit[0][middle].log()
        assert result.max() - result.min() < 1e-3
        gammas.append(result.mean().log().item())
    assert -0.301 < min(gammas) < -0.2
    assert 0.2 < max(gammas) < 0.301


def test_gamma_by_hand() -> None:
    x = torch.tensor([-1.0, 0.0, 1.0, 3.0]).view(1, 1, 1, 4)
    # On [0, 1]: 0, 1/4, 1/2, 1; squared and back on [-1, 3].
    assert gamma_correct(x, 2.0).flatten().tolist() == pytest.approx([-1, -0.75, 0, 3])
    assert gamma_correct(torch.full((1, 2, 2, 2), 5.0), 2.0).unique().tolist() == [5.0]


def test_strength_scales_what_is_added() -> None:
    before = sample()[0]
    for kind in ("noise", "shift", "scale"):
        once, twice = (augmented(only(kind, augment_strength=s))[0] - before for s in (1.0, 2.0))
        torch.testing.assert_close(twice, 2 * once, atol=1e-5, rtol=1e-4)


def test_strength_0_leaves_everything_but_flips() -> None:
    config = only(*[kind for kind in KINDS if kind != "flip"], augment_strength=0)
    x, y = augmented(config)
    torch.testing.assert_close(x, sample()[0], atol=1e-4, rtol=0)
    assert torch.equal(y, sample()[1])
    x, _ = augmented(only(*KINDS, augment_strength=0))
    torch.testing.assert_close(x, sample()[0].flip(2, 3, 4), atol=1e-4, rtol=0)


def test_each_transform_comes_as_often_as_its_probability() -> None:
    x, y = sample(shape=(4, 4, 8))
    config = only().model_copy(update={"shift_prob": 0.3})
    changed = [not torch.equal(augment_one(x, y, config, 1, index)[0], x) for index in range(400)]
    assert sum(changed) / 400 == pytest.approx(0.3, abs=0.07)


def test_a_patch_depends_on_seed_epoch_and_index_not_on_global_generators() -> None:
    config = TrainConfig(seed=5, **{f"{kind}_prob": 0.5 for kind in KINDS})
    first = augmented(config, index=3)
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002
    assert all(torch.equal(a, b) for a, b in zip(first, augmented(config, index=3), strict=True))
    for other in (
        augmented(config, index=4),
        augmented(config, index=3, epoch=2),
        augmented(config.model_copy(update={"seed": 6}), index=3),
    ):
        assert not torch.equal(first[0], other[0])


def test_labels_are_augmented_as_their_masks_are() -> None:
    label = torch.from_numpy(np.random.default_rng(0).choice(np.array([0, 1, 2, 4], np.uint8), (1, *SHAPE)))
    for index in range(5):
        x, config = sample()[0][0], only("flip", "rotate", "zoom")
        of_labels = augment(x.clone(), label, config, 1, index)[1]
        of_masks = augment(x.clone(), labels_to_regions_torch(label[0]), config, 1, index)[1]
        assert of_labels.dtype == torch.uint8
        assert torch.equal(labels_to_regions_torch(of_labels[0]), of_masks)
