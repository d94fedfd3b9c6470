"""Read a NIfTI file whole, or say what is wrong with it; nothing is allocated by what a damaged header claims."""

from __future__ import annotations

import io
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from isal import isal_zlib
from nibabel.arrayproxy import ArrayProxy
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError
from numpy.typing import NDArray

from trainable.cases.affine import affine_note, usable_affine
from trainable.cases.case_files import CaseError
from trainable.cases.grid import FileGrid, three
from trainable.core.config import Shape3

GZIP = b"\x1f\x8b"
NIFTI2 = (b"\x1c\x02\0\0", b"\0\0\x02\x1c")  # how such a header begins, in either order of bytes
MAX_VOXELS = 2**28  # 645^3; a case of BraTS has 30 times fewer
HEADER_PART = 2**16  # bytes of a file that contain its header, compressed or not
BEYOND = 2**24  # bytes that may follow the voxels
ERRORS = (
    ImageFileError, HeaderDataError, WrapStructError, OSError, EOFError, ValueError, OverflowError, struct.error,
    isal_zlib.IsalError,
)  # fmt: skip


@dataclass(frozen=True)
class NiftiFile:
    """One volume as it lies in its file.

    Attributes:
        voxels: (X, Y, Z), in their type on disk, or as floats if the header scales.
        grid: shape and affine.
        dtype: type of the voxels on disk.
        note: what in its header contradicts the affine of the grid, in words; "" if nothing does.
    """

    voxels: NDArray[Any]
    grid: FileGrid
    dtype: np.dtype[Any]
    note: str = ""


def read_nifti(case: str, path: Path) -> NiftiFile:
    """Read a NIfTI file, compressed or not. Axes of length 1 after the third are dropped.

    What follows the compressed content is ignored, as gunzip does; a part of it that is cut off or damaged is not.

    Args:
        case: name of the case, for the error.

    Raises:
        CaseError: for a file that is missing, empty, truncated, damaged or larger than MAX_VOXELS, that is not one 3D
            volume of real numbers, or whose affine gives no place to each voxel.
    """
    try:
        header, content = _read(path)
        voxels = np.asanyarray(ArrayProxy(io.BytesIO(content), header))
    except ERRORS as error:  # type: ignore[misc]  # isal's stub declares its class as an object
        raise CaseError(
            f"{case}: {path.name} cannot be read, truncated or damaged ({str(error) or type(error).__name__}); "
            f"expected a whole NIfTI file; copy or download it again to {path}"
        ) from None
    if voxels.dtype.kind not in "iuf":
        raise CaseError(f"{case}: {path.name} has voxels of type {voxels.dtype}; expected real numbers")
    try:
        affine = usable_affine(header)
    except ValueError as error:
        raise CaseError(f"{case}: {path.name}: {error}") from None
    shape = _shape3(case, path, voxels.shape)
    grid = FileGrid(shape, affine)
    return NiftiFile(voxels.reshape(shape, order="F"), grid, header.get_data_dtype(), affine_note(header))


def _shape3(case: str, path: Path, shape: tuple[int, ...]) -> Shape3:
    """Return a shape without the axes of length 1 after the third."""
    if len(shape) < 3 or any(size != 1 for size in shape[3:]):
        raise CaseError(f"{case}: {path.name} has shape {shape}; expected one 3D volume")
    return three(shape[:3])


def _read(path: Path) -> tuple[Any, bytes]:
    """Return the header and the uncompressed content of a NIfTI file.

    Raises:
        ERRORS: if it is not whole, or its header claims what it cannot have.
    """
    with path.open("rb") as file:
        start = file.read(HEADER_PART)
        if not start:
            raise EOFError("it is empty, 0 bytes")
        zipped = start.startswith(GZIP)
        header = _header(isal_zlib.decompressobj(wbits=31).decompress(start, 540) if zipped else start[:540])
        size = _size(header)
        file.seek(0)
        content = file.read(min(size + BEYOND, path.stat().st_size))  # read() allocates what it is asked for
    if zipped:
        content = _decompress(content, size + BEYOND)
    if len(content) < size:
        raise EOFError(f"its header claims {_claim(header)}, {size} bytes in all, and it has {len(content)}")
    return header, content


def _header(start: bytes) -> Any:
    """Return the header of a NIfTI file, checked by nibabel, given the first 540 uncompressed bytes of the file."""
    kind = nib.Nifti2Header if start[:4] in NIFTI2 else nib.Nifti1Header
    return kind(start[: kind.template_dtype.itemsize], check=True)


def _claim(header: Any) -> str:
    """Return what a header says of its voxels: "64 x 64 x 48 voxels of int16"."""
    return f"{' x '.join(map(str, header.get_data_shape()))} voxels of {header.get_data_dtype()}"


def _size(header: Any) -> int:
    """Return the size in bytes of the uncompressed file of a header.

    Raises:
        ValueError: if it has no voxels or more than MAX_VOXELS, or they begin outside the file.
    """
    shape, offset = header.get_data_shape(), header.get_data_offset()
    voxels = math.prod(map(int, shape))
    if not shape or min(shape) < 1 or voxels > MAX_VOXELS:
        raise ValueError(f"its header claims {_claim(header)}; expected 1 to {MAX_VOXELS} voxels")
    if not 0 <= offset <= BEYOND:
        raise ValueError(f"its header claims that the voxels begin at byte {offset}")
    return int(offset + voxels * header.get_data_dtype().itemsize)


def _decompress(content: bytes, limit: int) -> bytes:
    """Return what gzip has compressed, in one or more parts; what follows them is ignored.

    Raises:
        ValueError: if it is more than `limit` bytes.
        EOFError, IsalError: if a part is cut off or damaged.
    """
    parts: list[bytes] = []
    left = limit
    while content.startswith(GZIP):
        part = isal_zlib.decompressobj(wbits=31)
        parts.append(part.decompress(content, left + 1))
        left -= len(parts[-1])
        if left < 0:
            raise ValueError(f"it has more than {limit} bytes, far more than its header claims")
        if not part.eof:
            raise EOFError("the compressed content is cut off")
        content = part.unused_data.lstrip(b"\0")
    return parts[0] if len(parts) == 1 else b"".join(parts)
