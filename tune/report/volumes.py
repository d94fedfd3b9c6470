"""Volumes as pictures that a browser decodes: all axial slices of a volume side by side in one WebP."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trainable.core.brats import MODALITIES, Labels
from tune.report.case_views import CaseImages

CODE_STEP = 16  # between the grey levels of the codes in a picture of labels, so that no rounding mixes them up
LEVELS = np.array([0, 2, 1, 0, 3], np.uint8)  # of the labels 0, 1, 2, 4: how many of WT, TC and ET a voxel is in
COARSE_MM = 1.5  # voxels are made this large if a case would take too much room


@dataclass(frozen=True)
class EncodedCase:
    """A case as data: URIs of pictures, whose tiles are the axial slices, each X wide and Y high, row by row.

    shape: (X, Y, Z) in voxels. mm: size of a voxel. affine: rows of the 3 x 4 matrix from indices to mm. columns:
    number of tiles in a row. modalities: lossy, by name. labels: lossless; a voxel's grey level is CODE_STEP times
    (its level in the truth + 4 x that in the prediction), see LEVELS. start: see largest_error.
    is_coarse: its voxels were made larger, see COARSE_MM.
    """

    shape: tuple[int, ...]
    mm: tuple[float, ...]
    affine: list[list[float]]
    columns: int
    modalities: dict[str, str]
    labels: str
    start: tuple[int, ...]
    is_coarse: bool = False

    @property
    def size(self) -> int:
        """The length of all URIs, in bytes."""
        return len(self.labels) + sum(map(len, self.modalities.values()))


def encode_case(images: CaseImages, max_bytes: int) -> EncodedCase:
    """Return a case in at most max_bytes if that can be: at high quality, else at lower, else with coarser voxels."""
    encoded = encode(images, quality=75)
    if encoded.size > max_bytes:
        encoded = encode(images, quality=55)
    if encoded.size > max_bytes:
        encoded = replace(encode(coarser(images), quality=80), is_coarse=True)
    return encoded


def encode(images: CaseImages, *, quality: int) -> EncodedCase:
    """Return a case encoded; quality: of the WebP of the modalities, 0 to 100."""
    codes = CODE_STEP * (LEVELS[images.truth] + 4 * LEVELS[images.prediction])
    with ThreadPoolExecutor(len(MODALITIES)) as pool:  # the encoder runs without the lock of Python's interpreter
        uris = list(pool.map(lambda volume: webp_uri(tiles(volume), quality=quality), images.grey))
    return EncodedCase(
        shape=images.truth.shape,
        mm=images.mm,
        affine=[[round(value, 4) for value in row] for row in images.affine[:3].tolist()],
        columns=column_count(images.truth.shape),
        modalities=dict(zip(MODALITIES, uris, strict=True)),
        labels=webp_uri(tiles(codes), quality=None),
        start=largest_error(images),
    )


def largest_error(images: CaseImages) -> tuple[int, ...]:
    """Return a voxel to look at first: in the axial slice with most wrong voxels, and there in the middle of them.

    Those in the brain count; without any those outside; without these the tumour; else it is the middle of the volume.
    """
    wrong = images.truth != images.prediction
    for shown in (wrong & images.grey.any(0), wrong, images.truth > 0):
        if shown.any():
            z = int(shown.sum((0, 1)).argmax())
            x, y = np.median(np.nonzero(shown[:, :, z]), axis=1).astype(int).tolist()
            return x, y, z
    return tuple(size // 2 for size in images.truth.shape)


def column_count(shape: Sequence[int]) -> int:
    """Return how many tiles of X by Y stand in a row, so that Z of them make a picture about as wide as high."""
    x, y, z = shape
    return max(1, round((z * y / x) ** 0.5))


def tiles(volume: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the axial slices of a volume (X, Y, Z) as tiles of one picture (height, width)."""
    x, y, z = volume.shape
    columns = column_count(volume.shape)
    rows = -(-z // columns)
    slices = np.zeros((rows * columns, y, x), np.uint8)
    slices[:z] = volume.transpose(2, 1, 0)
    return slices.reshape(rows, columns, y, x).swapaxes(1, 2).reshape(rows * y, columns * x)


def webp_uri(picture: NDArray[np.uint8], *, quality: int | None) -> str:
    """Return a grey (height, width) or RGB picture (height, width, 3) as a data: URI; quality None is lossless."""
    file = io.BytesIO()
    options = {"lossless": True} if quality is None else {"quality": quality}
    Image.fromarray(picture).save(file, "webp", method=2, **options)  # half the time of method 4, 4 % more bytes
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()


def coarser(images: CaseImages) -> CaseImages:
    """Return a case with voxels of about COARSE_MM, larger ones as they are; grey levels linear, labels nearest."""
    from scipy import ndimage

    zoom = np.minimum(np.array(images.mm) / COARSE_MM, 1.0)
    grey = np.stack([ndimage.zoom(volume, zoom, order=1, grid_mode=True, mode="nearest") for volume in images.grey])

    def nearest(label: Labels) -> Labels:
        return ndimage.zoom(label, zoom, order=0, grid_mode=True, mode="nearest")

    factor = np.array(images.truth.shape) / grey.shape[1:]  # of the size of a voxel
    affine = images.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ ((factor - 1) / 2)  # the centre of the first voxel
    affine[:3, :3] *= factor
    x, y, z = (np.array(images.mm) * factor).tolist()
    return CaseImages(grey, nearest(images.truth), nearest(images.prediction), affine, (x, y, z))
