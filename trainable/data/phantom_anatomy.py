"""The anatomy of a synthetic case: a skull-stripped brain with a glioma, drawn at random.

Lengths are those of an adult brain at 1 mm and shrink together on grids too small for one, so 64 x 64 x 48 shows the
same anatomy as 240 x 240 x 155.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from trainable.core.brats import MODALITIES
from trainable.core.config import Shape3
from trainable.core.errors import InputError

Floats = NDArray[Any]  # float32

HALF_AXES = np.array([69.0, 86.0, 69.0])  # of an adult brain: left-right, front-back, up-down, in mm
SMALLEST_SIDE = 32

# Intensity per tissue, in the order of MODALITIES (FLAIR, T1, T1ce, T2), relative to white matter on T1.
WHITE = (0.80, 1.00, 0.98, 0.62)
GREY = (0.88, 0.76, 0.80, 0.76)
FLUID = (0.22, 0.30, 0.32, 1.60)
VESSEL = (0.45, 0.80, 1.75, 0.30)
SPOT = (1.30, 0.85, 0.85, 1.15)  # harmless bright spots of ageing white matter
OEDEMA = (1.70, 0.62, 0.64, 1.40)
ENHANCING = (1.50, 0.70, 1.90, 1.15)
NECROSIS = (1.10, 0.38, 0.42, 1.60)
SOLID = (1.40, 0.45, 0.48, 1.65)  # core of a tumour that does not enhance


@dataclass(frozen=True)
class Tissue:
    """Shares of voxels in the brain's box, float32 (X, Y, Z) in 0..1; the rest of the mask `brain` is white matter."""

    brain: NDArray[np.bool_]
    grey: Floats
    fluid: Floats
    vessel: Floats
    spot: Floats


@dataclass(frozen=True)
class Tumour:
    """Shares of voxels in the brain's box, float32 (X, Y, Z) in 0..1: each contains the next."""

    whole: Floats
    core: Floats
    inner: Floats


def make_case(
    shape: Shape3, seed: int | Sequence[int], *, with_et: bool, at_border: bool
) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """Make one case: image int16 (4, X, Y, Z), background 0, and label uint8 (X, Y, Z) of 0, 1, 2, 4.

    Args:
        seed: the same shape, seed and options give the same case.
        with_et: whether the tumour enhances (has label 4).
        at_border: whether the tumour reaches the brain's surface.

    Raises:
        InputError: for a side below 32 voxels.
    """
    check_shape(shape)
    rng = np.random.default_rng(seed)
    size = min(1.0, float((0.46 * np.array(shape) / HALF_AXES).min())) * rng.uniform(0.95, 1.0)
    half = HALF_AXES * size
    corner = np.floor((np.array(shape) - 2.16 * half) / 2).astype(int).clip(0)
    box = tuple(slice(int(low), int(n - low)) for low, n in zip(corner, shape, strict=True))
    grid = [np.arange(s.start, s.stop, dtype=np.float32) - n / 2 for s, n in zip(box, shape, strict=True)]
    position = np.stack(np.meshgrid(*grid, indexing="ij")) / half[:, None, None, None].astype(np.float32)

    centre, radius = _tumour_position(rng, at_border)
    tissue = _tissue(rng, _before_growth(position, centre, radius), position, size)
    tumour = _tumour(rng, position, centre, radius, tissue, size)
    image = np.zeros((len(MODALITIES), *shape), np.int16)
    label = np.zeros(shape, np.uint8)
    label[box] = _label(tumour, tissue.brain, with_et)
    image[:, box[0], box[1], box[2]] = _paint(rng, tissue, tumour, with_et, size)
    return image, label


def check_shape(shape: Shape3) -> None:
    """Raise InputError if a shape is not three sizes (X, Y, Z) of at least SMALLEST_SIDE voxels."""
    if len(shape) != 3 or min(shape) < SMALLEST_SIDE:
        raise InputError(f"shape is {list(shape)}; expected three sizes of {SMALLEST_SIDE} voxels or more")


def _noise(rng: np.random.Generator, shape: tuple[int, ...], period: float) -> Floats:
    """Return a smooth random field of about zero mean and unit deviation, float32; period in voxels."""
    coarse = [max(4, round(n / period) + 2) for n in shape]
    field = rng.standard_normal(coarse, dtype=np.float32)
    # Cubic interpolation is separable: three small matrices are ten times faster than one zoom of the volume.
    for axis, (n, few) in enumerate(zip(shape, coarse, strict=True)):
        matrix = ndimage.zoom(np.eye(few, dtype=np.float32), (n / few, 1), order=3)
        field = np.moveaxis(np.einsum("ai,i...->a...", matrix, np.moveaxis(field, axis, 0)), 0, axis)
    return np.asarray(field / (field.std() + 1e-6), np.float32)


def _step(value: Floats, width: float) -> Floats:
    """Return 0 for values well below 0 and 1 well above, smooth over about `width`."""
    return np.asarray(1 / (1 + np.exp(np.clip(-4 * value / width, -30, 30))), np.float32)


def _tumour_position(rng: np.random.Generator, at_border: bool) -> tuple[Floats, float]:
    """Draw the centre (3,) and the radius of the tumour's core, both in half-axes of the brain."""
    radius = rng.uniform(0.27, 0.42)
    direction = rng.standard_normal(3) * (1, 0.9, 0.7)
    direction[0] += np.sign(direction[0]) * 0.8  # gliomas rarely sit on the midline
    far = 0.82 if at_border else rng.uniform(0.30, 0.50)
    return (far * direction / np.linalg.norm(direction)).astype(np.float32), float(radius)


def _before_growth(position: Floats, centre: Floats, radius: float) -> Floats:
    """Return where the tissue now at `position` was before the tumour displaced it; (3, X, Y, Z)."""
    away = position - centre[:, None, None, None]
    push = 0.45 * np.exp(-np.square(away).sum(0) / (2.0 * radius) ** 2)
    return np.asarray(position - push * away, np.float32)


def _tissue(rng: np.random.Generator, before: Floats, position: Floats, size: float) -> Tissue:
    """Draw the healthy brain: a folded cortex, ventricles, deep grey nuclei, vessels, bright spots."""
    shape = position.shape[1:]
    u, v, w = before
    side = np.abs(u)
    egg = position[0] * (1.06 - 0.12 * position[1]), position[1], position[2] * (1 + 0.12 * (position[2] < 0))
    radius = sum(np.abs(axis) ** 2.3 for axis in egg) ** (1 / 2.3)
    depth = np.asarray(0.98 - radius + 0.025 * _noise(rng, shape, 36 * size), np.float32)

    wavy = 0.10 * _noise(rng, shape, 14 * size)
    fold = np.abs(_noise(rng, shape, 12 * size) + 0.25 * _noise(rng, shape, 5 * size))
    falx = np.abs(u + 0.12 * wavy) / 0.028 + np.clip(0.50 - np.hypot(position[1], position[2]), 0, 1) * 60
    sulcus = _step(0.13 - fold, 0.16) * _step(0.24 - depth, 0.06)
    sulcus = np.maximum(sulcus, 0.8 * _step(1 - falx, 1.0))
    ribbon = np.maximum(_step(0.65 - fold, 0.25) * _step(0.34 - depth, 0.06), _step(2.2 - falx, 1.0))
    cortex = np.maximum(ribbon, _step(0.08 - depth, 0.03))

    swell = rng.uniform(0.8, 1.4)  # ventricles grow with age
    bend = side - (0.10 + 0.45 * np.square(v - 0.05))
    horns = 1 - np.sqrt((bend / 0.075) ** 2 + ((v - 0.02) / 0.42) ** 2 + ((w - 0.12) / 0.17) ** 2) / swell
    third = 1 - np.sqrt((u / 0.03) ** 2 + (v / 0.16) ** 2 + ((w + 0.10) / 0.18) ** 2) / swell
    ventricle = _step(np.maximum(horns, third) + wavy, 0.35)
    nuclei = [((0.19, 0.16, -0.02), (0.10, 0.16, 0.15)), ((0.33, -0.10, 0.0), (0.09, 0.22, 0.17))]
    deep = np.zeros(shape, np.float32)
    for at, radii in nuclei:
        away = [(axis - a) / r for axis, a, r in zip((side, v, w), at, radii, strict=True)]
        deep = np.maximum(deep, _step(1 - np.sqrt(sum(np.square(axis) for axis in away)) + wavy, 0.3))

    fluid = np.maximum(sulcus, ventricle)
    grey = np.maximum(cortex, 0.8 * deep) * (1 - fluid)
    vessel, spot = _distractors(rng, depth, ventricle, position, size)
    return Tissue(depth > 0, grey, fluid, vessel * (1 - ventricle), spot * (1 - fluid))


def _distractors(
    rng: np.random.Generator, depth: Floats, ventricle: Floats, position: Floats, size: float
) -> tuple[Floats, Floats]:
    """Draw vessels, bright on T1ce, and spots in the white matter, bright on FLAIR: similar to tumour."""
    shape = depth.shape
    # Two random surfaces intersect in thin curves, which look like vessels.
    curve = np.hypot(_noise(rng, shape, 26 * size), _noise(rng, shape, 26 * size))
    vessel = _step(0.13 - curve, 0.10)
    sinus = 1 - np.hypot(position[0] / 0.05, (depth - 0.02) / 0.06) - 3 * np.clip(-position[2], 0, 1)
    vessel = np.maximum(vessel, _step(sinus, 0.5))
    plexus = ventricle * _step(_noise(rng, shape, 8 * size) - 1.4, 0.6)
    vessel = np.maximum(vessel, 0.8 * plexus)
    near = _step(ndimage.uniform_filter(ventricle, max(3, round(9 * size))) - 0.12, 0.15) * 0.6
    spot = _step(_noise(rng, shape, 9 * size) - rng.uniform(2.2, 3.0), 1.2) * (depth > 0.15)
    caps = near * _step(_noise(rng, shape, 16 * size) - rng.uniform(0.6, 1.6), 0.8)
    return vessel, np.maximum(spot, caps).astype(np.float32)


def _tumour(
    rng: np.random.Generator, position: Floats, centre: Floats, radius: float, tissue: Tissue, size: float
) -> Tumour:
    """Draw oedema along the white matter around an irregular core, whose inner part is off its centre."""
    shape = tissue.brain.shape
    stretch = np.exp(rng.normal(0, 0.15, 3)).astype(np.float32)
    away = (position - centre[:, None, None, None]) * (stretch / stretch.prod() ** (1 / 3))[:, None, None, None]
    millimetres = radius * HALF_AXES.mean() * size
    rough = _noise(rng, shape, max(3.0, 0.9 * millimetres))
    fine = _noise(rng, shape, max(2.5, 0.35 * millimetres))
    distance = np.sqrt(np.square(away).sum(0)) / radius + 0.13 * rough + 0.05 * fine

    reach = rng.uniform(1.4, 1.9)
    fingers = 0.25 * _noise(rng, shape, max(3.0, 0.7 * millimetres))
    spread = distance + fingers * np.clip(distance - 0.9, 0, 1) + 0.20 * tissue.grey * (distance > 1.1)
    dry = tissue.fluid * (distance > 1.0)  # oedema stops at ventricles and sulci; the core displaces them
    whole = _step(np.maximum(reach - spread, 1.08 - distance), 0.16) * (1 - dry)
    parts = ndimage.label(whole > 0.5)[0]
    main = parts == np.bincount(parts[parts > 0]).argmax()
    whole = whole * ndimage.binary_dilation(main, iterations=2)  # no separate pieces of oedema
    core = np.minimum(_step(1 - distance, 0.14), whole)
    shift = rng.normal(0, 0.12, 3).astype(np.float32)
    off = np.sqrt(np.square(away / radius - shift[:, None, None, None]).sum(0))
    inner = rng.uniform(0.45, 0.78) - off + 0.14 * rough + 0.10 * fine
    inner = _step(np.minimum(inner, 0.85 - distance), 0.14)  # always inside a closed rim
    return Tumour(whole, core, np.minimum(inner, core))


def _label(tumour: Tumour, brain: NDArray[np.bool_], with_et: bool) -> NDArray[np.uint8]:
    """Return the labels 0, 1, 2, 4, uint8 (X, Y, Z), of a tumour."""
    label = np.zeros(brain.shape, np.uint8)
    label[brain & (tumour.whole > 0.5)] = 2
    label[brain & (tumour.core > 0.5)] = 4 if with_et else 1
    if with_et:
        label[brain & (tumour.inner > 0.5)] = 1
    return label


def _paint(rng: np.random.Generator, tissue: Tissue, tumour: Tumour, with_et: bool, size: float) -> NDArray[np.int16]:
    """Return intensities int16 (4, X, Y, Z): tissue per modality, texture, blur, bias field, Rician noise."""
    shape = tissue.brain.shape
    image = np.zeros((len(MODALITIES), *shape), np.int16)
    texture = _noise(rng, shape, max(2.0, 6 * size))
    patchy = 1 + 0.08 * _noise(rng, shape, max(2.5, 10 * size))
    layers = [(tissue.grey, GREY), (tissue.fluid, FLUID), (tissue.spot, SPOT), (tissue.vessel, VESSEL)]
    strength = rng.uniform(0.8, 1.0)
    growth = [(tumour.whole, OEDEMA), (tumour.core, ENHANCING if with_et else SOLID)]
    growth += [(tumour.inner, NECROSIS)] if with_et else []
    for channel in range(len(MODALITIES)):
        jitter = np.exp(rng.normal(0, 0.05, 8))
        signal = np.full(shape, WHITE[channel], np.float32)
        for (share, level), vary in zip(layers, jitter, strict=False):
            signal += share * (level[channel] * vary - signal)
        healthy = signal.copy()
        for (share, level), vary in zip(growth, jitter[4:], strict=False):
            signal += share * (level[channel] * vary * patchy - signal)
        signal = healthy + strength * (signal - healthy)
        signal[:] = ndimage.gaussian_filter(signal * (1 + 0.03 * texture), 0.5)
        signal *= np.exp(0.13 * _noise(rng, shape, 90 * size))
        spread = rng.uniform(0.02, 0.05)
        real, imaginary = (spread * rng.standard_normal(shape, dtype=np.float32) for _ in range(2))
        signal[:] = np.hypot(signal + real, imaginary)
        scale = np.exp(rng.uniform(np.log(150), np.log(1500)))
        image[channel] = np.where(tissue.brain, np.clip(np.rint(signal * scale), 1, 32767), 0)
    return image
