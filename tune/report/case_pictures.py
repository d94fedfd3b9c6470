"""A still picture of a case, for print and for browsers without scripts: three planes through the largest error."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from trainable.core.brats import REGIONS, Bools, labels_to_regions
from trainable.evaluation.pictures import outline
from tune.report.case_views import CaseImages
from tune.report.volumes import largest_error

WIDTH = 1080  # pixels
GAP = 6  # between the planes
DASH = 4  # pixels that are drawn, and then left out, of a prediction's outline and of hatching
# Okabe and Ito's colours, some lighter, since they are on black; the same as in static/case_viewer.css
COLOURS = {"WT": (47, 191, 147), "TC": (240, 118, 60), "ET": (240, 228, 66)}
MISSED, ADDED = (86, 180, 233), (204, 121, 167)


class Plane(NamedTuple):
    """A plane as it is drawn: the axes of the volume that run across, down and through it.

    upwards: index 0 of the axis down is at the bottom. sides: the letters at the left, right, top and bottom.
    """

    across: int
    down: int
    through: int
    upwards: bool
    sides: str


# Radiological: the patient's right is on the left of the picture.
PLANES = {
    "axial": Plane(0, 1, 2, False, "RLAP"),
    "coronal": Plane(0, 2, 1, True, "RLSI"),
    "sagittal": Plane(1, 2, 0, True, "APSI"),
}


def draw_planes(images: CaseImages, channel: int) -> NDArray[np.uint8]:
    """Return the three planes through the largest error side by side, RGB (height, width, 3), at one scale in mm.

    Voxels that the prediction misses are hatched, those that it adds are filled; the truth has a solid outline and the
    prediction a dashed one.

    channel: of the modality.
    """
    size = np.array(images.truth.shape) * images.mm
    scale = (WIDTH - 2 * GAP) / (2 * size[0] + size[1])  # pixels per mm
    start = largest_error(images)
    drawn = [draw_plane(images, channel, plane, start[plane.through], scale) for plane in PLANES.values()]
    canvas = Image.new("RGB", (sum(one.width for one in drawn) + 2 * GAP, max(one.height for one in drawn)))
    left = 0
    for one in drawn:
        canvas.paste(one, (left, 0))
        left += one.width + GAP
    return np.asarray(canvas)


def draw_plane(images: CaseImages, channel: int, plane: Plane, index: int, scale: float) -> Image.Image:
    """Return a slice drawn as draw_planes says; index: of the slice. scale: pixels per mm."""
    pixels = tuple(round(images.truth.shape[axis] * images.mm[axis] * scale) for axis in (plane.across, plane.down))

    def enlarge(values: NDArray[np.uint8], how: Image.Resampling) -> NDArray[np.uint8]:
        return np.asarray(Image.fromarray(oriented(values, plane, index)).resize(pixels, how))

    grey = enlarge(images.grey[channel], Image.Resampling.BILINEAR)
    rgb = np.repeat(grey[..., None], 3, axis=2)
    truth, prediction = (enlarge(label, Image.Resampling.NEAREST) for label in (images.truth, images.prediction))
    masks = labels_to_regions(truth), labels_to_regions(prediction)
    level = [mask.sum(0) for mask in masks]
    dashes = np.add.outer(np.arange(pixels[1]), np.arange(pixels[0])) % (2 * DASH) < DASH
    for wrong, colour in (((level[0] > level[1]) & dashes, MISSED), (level[1] > level[0], ADDED)):
        rgb[wrong] = rgb[wrong] // 3 + 2 * (np.array(colour, np.uint8) // 3)
    for number, region in enumerate(REGIONS):
        rgb[outline(masks[0][number])] = COLOURS[region]
        rgb[thick_outline(masks[1][number]) & dashes] = COLOURS[region]
    picture = Image.fromarray(rgb)
    places = ((0.0, 0.5), (1.0, 0.5), (0.5, 0.0), (0.5, 1.0))
    for letter, (x, y), anchor in zip(plane.sides, places, ("lm", "rm", "mt", "mb"), strict=True):
        place = (4 + x * (pixels[0] - 8), 4 + y * (pixels[1] - 8))
        ImageDraw.Draw(picture).text(place, letter, fill=(255, 255, 255), anchor=anchor, font_size=14)
    return picture


def oriented(volume: NDArray[np.uint8], plane: Plane, index: int) -> NDArray[np.uint8]:
    """Return a slice of a volume (X, Y, Z) as rows and columns of a picture."""
    rows = np.take(volume, index, axis=plane.through).T  # the axis across has the lower number in each plane
    return np.ascontiguousarray(rows[::-1] if plane.upwards else rows)


def thick_outline(mask: Bools) -> Bools:
    """Return the border of a 2D mask, two pixels wide."""
    border = outline(mask)
    return border | outline(mask & ~border)
