"""Pictures of a case's slices with outlines of truth and prediction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

from trainable.core.brats import MODALITIES, REGIONS, Bools, labels_to_regions

MIN_TILE = 240  # pixels, width of a slice; smaller ones are magnified
COLOURS = {"WT": (70, 200, 90), "TC": (240, 90, 80), "ET": (250, 210, 60)}


def draw_case(
    image: NDArray[np.int16], label: NDArray[np.uint8] | None, prediction: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    """Draw the four modalities of one axial slice in a row with the truth outlined, and below with the prediction.

    The slice is the one with most tumour in the truth, or in the prediction if there is no truth or it is empty; the
    middle one if that is empty too.

    Args:
        image: int16 (4, X, Y, Z), not normalised.
        label: the truth, uint8 (X, Y, Z); None draws the prediction's row only.
        prediction: uint8 (X, Y, Z).

    Returns:
        RGB uint8 (height, width, 3); small volumes are magnified.
    """
    shown = label if label is not None and label.any() else prediction
    z = int((shown > 0).sum((0, 1)).argmax()) if shown.any() else image.shape[3] // 2
    scale = max(1, MIN_TILE // max(image.shape[1:3]))
    rows = {"prediction": prediction} if label is None else {"truth": label, "prediction": prediction}
    strips = []
    for name, labels in rows.items():
        regions = [magnify(mask, scale) for mask in labels_to_regions(labels[:, :, z])]
        tiles = [draw_slice(magnify(image[channel, :, :, z], scale), regions) for channel in range(len(MODALITIES))]
        for modality, rgb in zip(MODALITIES, tiles, strict=True):
            draw_caption(rgb, f"{modality}, {name}")
        strips.append(np.concatenate(tiles, axis=1))
    return np.concatenate(strips, axis=0)


def outline(mask: Bools) -> Bools:
    """Return the border pixels of a 2D mask."""
    return mask & ~ndimage.binary_erosion(mask)


def magnify(plane: NDArray[Any], scale: int) -> NDArray[Any]:
    """Return a plane (X, Y) as rows of y and columns of x, each pixel repeated to a square of `scale` by `scale`."""
    return plane.T.repeat(scale, 0).repeat(scale, 1)


def draw_slice(plane: NDArray[np.int16], regions: Sequence[Bools]) -> NDArray[np.uint8]:
    """Return a plane (height, width) in grey with the regions outlined in their colours: RGB uint8 (height, width, 3).

    Args:
        plane: 0 and below are black, the 99.5th percentile of its positive values and above are white.
        regions: masks (height, width) of WT, TC and ET; the outline of a later one covers that of an earlier one.
    """
    top = np.percentile(plane[plane > 0], 99.5) if (plane > 0).any() else 1.0
    grey = (plane / top).clip(0, 1)[..., None] * 255
    rgb = np.repeat(grey, 3, axis=2).astype(np.uint8)
    for region, mask in zip(REGIONS, regions, strict=True):
        rgb[outline(mask)] = COLOURS[region]
    return rgb


def draw_caption(rgb: NDArray[np.uint8], text: str) -> None:
    """Write a caption into the upper left corner of a picture (height, width, 3), in place."""
    image = Image.fromarray(rgb)
    ImageDraw.Draw(image).text((4, 2), text, fill=(255, 255, 255))
    rgb[:] = np.asarray(image)
