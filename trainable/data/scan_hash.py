"""A hash of a case's images, by which the same scan is recognised under any name."""

from __future__ import annotations

from typing import Any

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

from trainable.data.normalise import brain_box


def scan_hash(image: NDArray[np.int16]) -> str:
    """Return a hash of images (4, X, Y, Z) as load_case returns them: 8 hex digits per modality.

    It does not depend on the label, nor on how much background is around the brain: the CRC32 of the box that contains
    all non-zero voxels, and of its shape.

    Raises:
        ValueError: if all voxels are 0.
    """
    box = brain_box(image)
    return "".join(f"{_crc32(channel[box]):08x}" for channel in image)


def _crc32(volume: NDArray[Any]) -> int:
    """Return the CRC32 of a volume's voxels, preceded by its shape."""
    start = isal_zlib.crc32(np.array(volume.shape, "<i8").tobytes())
    return isal_zlib.crc32(np.ascontiguousarray(volume, "<i2"), start)
