"""nnU-Net's low resolution, contrast and brightness."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from trainable.core.config import TrainConfig
from trainable.data.augment import augment, change_contrast, lower_resolution

OTHERS = ("flip", "rotate", "zoom", "scale", "shift", "gamma", "noise", "blur")
NEW = ("lowres", "contrast", "brightness")


def only(*kinds: str, **options: Any) -> TrainConfig:
    return TrainConfig(**{f"{kind}_prob": float(kind in kinds) for kind in (*OTHERS, *NEW)}, **options)


def sample() -> Tensor:
    """Noise in a brain with background on two sides, (4, 14, 20, 26)."""
    image = np.random.default_rng(0).standard_normal((4, 14, 20, 26)).astype(np.float32)
    image[:, :3] = 0
    image[..., -4:] = 0
    return torch.from_numpy(image)


def augmented(config: TrainConfig, index: int = 0) -> Tensor:
    return augment(sample(), torch.zeros(1, 14, 20, 26), config, 1, index)[0]


def test_none_of_them_acts_by_default() -> None:
    config = TrainConfig()
    assert [getattr(config, f"{kind}_prob") for kind in NEW] == [0, 0, 0]


@pytest.mark.parametrize("kind", NEW)
def test_background_stays_0_and_the_brain_changes(kind: str) -> None:
    before = sample()
    changed = [augmented(only(kind), index) for index in range(4)]
    for after in changed:
        assert after.isfinite().all()
        assert not after[before == 0].any()
    assert max((after != before)[before != 0].float().mean() for after in changed) > 0.45


@pytest.mark.parametrize("kind", NEW)
def test_a_channel_that_is_all_background_stays_0(kind: str) -> None:
    after = augment(torch.zeros(4, 8, 8, 8), torch.zeros(1, 8, 8, 8), only(kind), 1, 0)[0]
    assert torch.equal(after, torch.zeros(4, 8, 8, 8))


@pytest.mark.parametrize("kind", NEW)
def test_they_leave_the_draws_of_the_others_as_they_are(kind: str) -> None:
    config = TrainConfig(gamma_prob=0.5, noise_prob=0.5)
    with_it = config.model_copy(update={f"{kind}_prob": 1e-9})  # drawn, and never so small
    assert all(torch.equal(augmented(config, index), augmented(with_it, index)) for index in range(8))


def test_brightness_multiplies_each_channel_by_0_75_to_1_25() -> None:
    before, factors = sample(), list[float]()
    for index in range(20):
        for old, new in zip(before, augmented(only("brightness"), index), strict=True):
            ratio = (new / old)[old != 0]
            assert ratio.max() - ratio.min() < 1e-5
            factors.append(ratio.mean().item())
    assert 0.7499 < min(factors) < 0.79
    assert 1.21 < max(factors) < 1.2501


def test_contrast_scales_about_the_mean_by_0_75_to_1_25_within_the_range() -> None:
    before, factors = sample(), list[float]()
    for index in range(20):
        for old, new in zip(before, augmented(only("contrast"), index), strict=True):
            inside = old != 0
            mean = old[inside].mean()
            assert new[inside].min() >= old[inside].min()
            assert new[inside].max() <= old[inside].max()
            middle = inside & ((old - mean).abs() < 1) & ((old - mean).abs() > 0.1)
            ratio = ((new - mean) / (old - mean))[middle]
            assert ratio.max() - ratio.min() < 1e-3
            factors.append(ratio.mean().item())
    assert 0.7499 < min(factors) < 0.79
    assert 1.21 < max(factors) < 1.2501


def test_contrast_by_hand() -> None:
    x = torch.tensor([0.0, 1, 2, 3, 6]).view(1, 1, 1, 5)  # the brain has a mean of 3 and a range of 1 to 6
    doubled = change_contrast(x, x != 0, torch.full((1, 1, 1, 1), 2.0))
    assert doubled.flatten().tolist() == [0, 1, 1, 3, 6]
    halved = change_contrast(x, x != 0, torch.full((1, 1, 1, 1), 0.5))
    assert halved.flatten().tolist() == [0, 2, 2.5, 3, 4.5]


def test_low_resolution_samples_each_second_voxel_and_interpolates_between_them() -> None:
    x = torch.arange(8.0).expand(8, 8, 8)
    # Of 8 voxels the nearest to the middles of 4, halfway between two; back, each at a quarter between two of those.
    assert lower_resolution(x, 0.5)[0, 0].tolist() == [1, 1.5, 2.5, 3.5, 4.5, 5.5, 6.5, 7]
    assert torch.equal(lower_resolution(x, 1.0), x)
    assert torch.equal(lower_resolution(x, 0.01), torch.full((8, 8, 8), 4.0))


def test_low_resolution_is_of_half_of_the_channels_and_0_5_to_1() -> None:
    before, changed, left = sample(), list[bool](), list[int]()
    ramp = torch.linspace(1, 101, 101)[:, None, None].expand(4, 101, 4, 4).clone()
    for index in range(40):
        changed += [not torch.equal(a, b) for a, b in zip(before, augmented(only("lowres"), index), strict=True)]
        steps = augment(ramp.clone(), torch.zeros(1, 101, 4, 4), only("lowres"), 1, index)[0]
        left += [len(set(channel[:, 0, 0].tolist())) for channel in steps]
    assert np.mean(changed) == pytest.approx(0.5, abs=0.1)
    assert min(left) > 50


def test_strength_scales_them_and_0_switches_them_off() -> None:
    before = sample()
    assert torch.allclose(augmented(only(*NEW, augment_strength=0)), before, atol=1e-6)
    once, twice = (augmented(only("brightness", augment_strength=s)) - before for s in (1.0, 2.0))
    torch.testing.assert_close(twice, 2 * once, atol=1e-5, rtol=1e-4)
    assert augmented(only(*NEW, augment_strength=3)).isfinite().all()
