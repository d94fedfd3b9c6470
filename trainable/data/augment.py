"""Augment a normalised patch on its device.

The transforms of a sample are drawn on the CPU from (seed, epoch, index), so that they do not depend on the device or
on the number of workers; only the values of the noise come from the device's own generator. Background voxels stay 0.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from trainable.core.config import Shape3, TrainConfig
from trainable.data.spatial import augmentation_generator, crop_transformed, draw_transform

# Largest transforms at augment_strength 1.
SCALE = SHIFT = NOISE = 0.1
GAMMA = 0.3
BLUR = 1.0  # voxels
BRIGHTNESS = CONTRAST = 0.25
LOWRES = 0.5  # of the resolution that is lost
LOWRES_CHANNEL_PROB = 0.5
MIN_RESOLUTION = 0.125  # at any strength


def augment(
    x: Tensor,
    y: Tensor,
    config: TrainConfig,
    epoch: int,
    index: int,
    *,
    start: Shape3 = (0, 0, 0),
    shape: Shape3 | None = None,
) -> tuple[Tensor, Tensor]:
    """Return a patch and its target augmented, each transform with its probability in the config; x may be overwritten.

    Args:
        x: float32 (4, D, H, W), normalised: the patch, or the block that it is cropped from if it is rotated or zoomed.
        y: labels or masks (C, D, H, W), of any dtype, which is kept.
        config: its option `augment` is left to the caller to check.
        index: of the patch in its epoch.
        start: first voxel of the patch in the block.
        shape: of the patch; None if x is the patch itself.
    """
    rng = augmentation_generator(config, epoch, index)
    strength = config.augment_strength
    matrix = draw_transform(rng, config)
    if matrix is not None:
        depth, height, width = x.shape[1:]
        x, y = crop_transformed(x, y, matrix, start, shape or (depth, height, width))
    axes = [axis for axis in (1, 2, 3) if rng.random() < config.flip_prob]
    if axes:
        x, y = x.flip(axes), y.flip(axes)
    brain = x != 0
    if rng.random() < config.blur_prob:
        x = blur(x, max(0.1, float(rng.uniform(0.5, 1.0)) * BLUR * strength))
    if rng.random() < config.noise_prob:
        generator = torch.Generator(x.device).manual_seed(int(rng.integers(2**31)))
        noise = torch.randn(x.shape, generator=generator, device=x.device)
        x += noise.mul_(float(rng.uniform(0, NOISE) * strength))
    if rng.random() < config.gamma_prob:
        x = gamma_correct(x, float(np.exp(rng.uniform(-GAMMA, GAMMA) * strength)))
    if rng.random() < config.scale_prob:
        x *= per_channel(1 + rng.uniform(-SCALE, SCALE, 4) * strength, x)
    if rng.random() < config.shift_prob:
        x += per_channel(rng.uniform(-SHIFT, SHIFT, 4) * strength, x)
    x = change_quality(x, brain, config, np.random.default_rng([config.seed, epoch, index, 4]))
    return x.mul_(brain), y


def change_quality(x: Tensor, brain: Tensor, config: TrainConfig, rng: np.random.Generator) -> Tensor:
    """Return a patch (4, D, H, W) with nnU-Net's brightness, contrast and low resolution, each with its probability.

    Args:
        brain: where the patch is not background, bool (4, D, H, W); elsewhere the result is undefined.
        rng: of these transforms alone.
    """
    strength = config.augment_strength
    if rng.random() < config.brightness_prob:
        x = x * per_channel(1 + rng.uniform(-BRIGHTNESS, BRIGHTNESS, 4) * strength, x)
    if rng.random() < config.contrast_prob:
        x = change_contrast(x, brain, per_channel(1 + rng.uniform(-CONTRAST, CONTRAST, 4) * strength, x))
    if rng.random() < config.lowres_prob:
        zooms = np.maximum(MIN_RESOLUTION, 1 - rng.uniform(0, LOWRES, 4) * strength)
        x = torch.stack([
            lower_resolution(channel, float(zoom)) if lowered else channel
            for channel, zoom, lowered in zip(x, zooms, rng.random(4) < LOWRES_CHANNEL_PROB, strict=True)
        ])  # fmt: skip
    return x


def per_channel(values: np.ndarray, like: Tensor) -> Tensor:
    """Return four numbers as a float32 (4, 1, 1, 1) tensor on the device of `like`."""
    return torch.from_numpy(values.astype(np.float32)).to(like.device, non_blocking=True)[:, None, None, None]


def blur(x: Tensor, sigma: float) -> Tensor:
    """Return (C, D, H, W) blurred with a Gaussian of `sigma` voxels, axis by axis; what is outside counts as zero."""
    radius = max(1, round(3 * sigma))
    whole = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, device=x.device, dtype=x.dtype) / sigma) ** 2).sum()
    for axis in (1, 2, 3):
        positions = torch.arange(x.shape[axis], device=x.device, dtype=x.dtype)
        offsets = positions[:, None] - positions
        # a matrix product, since cudnn needs long to find a kernel for a single channel, and much memory
        matrix = torch.where(offsets.abs() <= radius, torch.exp(-0.5 * (offsets / sigma) ** 2) / whole, 0)
        x = (x.movedim(axis, -1) @ matrix).movedim(-1, axis)
    return x


def gamma_correct(x: Tensor, gamma: float) -> Tensor:
    """Return (C, D, H, W) with each channel scaled to [0, 1], raised to the power of gamma, and scaled back."""
    low, high = x.amin((1, 2, 3), keepdim=True), x.amax((1, 2, 3), keepdim=True)
    span = (high - low).clamp(min=1e-6)
    return (x - low).div_(span).pow_(gamma).mul_(span).add_(low)


def change_contrast(x: Tensor, brain: Tensor, factors: Tensor) -> Tensor:
    """Return (C, D, H, W) with differences from each channel's mean scaled and cut to its range; background is 0.

    Args:
        brain: the voxels that mean and range are of, bool (C, D, H, W).
        factors: (C, 1, 1, 1).
    """
    axes = (1, 2, 3)
    mean = (x * brain).sum(axes, keepdim=True) / brain.sum(axes, keepdim=True).clamp(min=1)
    low = x.masked_fill(~brain, torch.inf).amin(axes, keepdim=True)
    high = x.masked_fill(~brain, -torch.inf).amax(axes, keepdim=True)
    return ((x - mean) * factors + mean).clamp(low, high).where(brain, 0)  # without a voxel the range is infinite


def lower_resolution(volume: Tensor, zoom: float) -> Tensor:
    """Return (D, H, W) sampled at `zoom` times its resolution, by nearest neighbour, and back, linearly."""
    size = [max(1, round(length * zoom)) for length in volume.shape]
    small = F.interpolate(volume[None, None], size, mode="nearest-exact")
    return F.interpolate(small, volume.shape, mode="trilinear", align_corners=False)[0, 0]
