"""Slices of a case with truth and prediction outlined."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

from trainable.core.brats import MODALITIES, REGIONS, Bools, labels_to_regions

TILE = 240  # pixels, at least, that a slice is wide
COLOURS = {"WT": (70, 200, 90), "TC": (240, 90, 80), "ET": (250, 210, 60)}


def picture(
    image: NDArray[np.int16], label: NDArray[np.uint8] | None, prediction: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    """The four modalities of the axial slice with most tumour, truth outlined above, prediction below.

    image (4, X, Y, Z), labels (X, Y, Z) -> RGB uint8 (height, width, 3); small volumes are magnified.
    """
    shown = label if label is not None and label.any() else prediction
    z = int((shown > 0).sum((0, 1)).argmax()) if shown.any() else image.shape[3] // 2
    scale = max(1, TILE // max(image.shape[1:3]))
    rows = {"prediction": prediction} if label is None else {"truth": label, "prediction": prediction}
    strips = []
    for name, labels in rows.items():
        regions = [magnified(mask, scale) for mask in labels_to_regions(labels[:, :, z])]
        tiles = [tile(magnified(image[channel, :, :, z], scale), regions) for channel in range(len(MODALITIES))]
        for modality, each in zip(MODALITIES, tiles, strict=True):
            write_on(each, f"{modality}, {name}")
        strips.append(np.concatenate(tiles, axis=1))
    return np.concatenate(strips, axis=0)


def outline(mask: Bools) -> Bools:
    """The border pixels of a 2D mask."""
    return mask & ~ndimage.binary_erosion(mask)


def magnified(plane: NDArray[Any], scale: int) -> NDArray[Any]:
    """A plane (X, Y) as rows of y and columns of x, each pixel `scale` times as large."""
    return plane.T.repeat(scale, 0).repeat(scale, 1)


def tile(plane: NDArray[np.int16], regions: Sequence[Bools]) -> NDArray[np.uint8]:
    """A plane in grey, up to its 99.5th percentile, with the regions outlined in their colours: RGB uint8."""
    top = np.percentile(plane[plane > 0], 99.5) if (plane > 0).any() else 1.0
    grey = (plane / top).clip(0, 1)[..., None] * 255
    rgb = np.repeat(grey, 3, axis=2).astype(np.uint8)
    for region, mask in zip(REGIONS, regions, strict=True):
        rgb[outline(mask)] = COLOURS[region]
    return rgb


def write_on(rgb: NDArray[np.uint8], text: str) -> None:
    """Write a caption into the upper left corner."""
    drawn = Image.fromarray(rgb)
    ImageDraw.Draw(drawn).text((4, 2), text, fill=(255, 255, 255))
    rgb[:] = np.asarray(drawn)
