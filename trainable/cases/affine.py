"""Check the affine of a NIfTI file: whether it gives each voxel a place, and the same one as the case's other files."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.orientations import io_orientation
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from trainable.cases.grid import spacing_text

LIMITS = (0.01, 100.0)  # mm; sides of voxels of a head
LEAST_VOLUME = 1e-3  # of a voxel, as a share of the box with its sides; 0 if its axes lie in one plane
ROUNDING = 1e-2  # mm, and as a share of the voxel size
UNITS = {1: ("metres", 1000.0), 3: ("micrometres", 0.001)}  # codes of NIfTI; the unit in mm


def usable_affine(header: Any) -> NDArray[np.float64]:
    """Return the affine of a NIfTI header, float64 (4, 4) in mm: the sform if it is set, else the qform.

    A header with neither has voxels along the axes, as NIfTI says. If the sform is set and cannot be used, the qform is
    not taken in its place: which of the two was meant cannot be known. Without a unit, and if in the header's unit the
    voxels would not be those of a head, the numbers are mm.

    Raises:
        ValueError: saying what sform and qform are, if the one that counts gives no place to each voxel.
    """
    forms = {name: _read_form(header, name) for name in ("sform", "qform")}
    used = next((name for name, (affine, problem) in forms.items() if affine is not None or problem), None)
    affine, problem = forms[used] if used else _checked(header, header.get_base_affine)
    if problem or affine is None:
        found = "; ".join(f"its {name} {_describe(*form)}" for name, form in forms.items())
        sizes = "" if used else f"; its voxel sizes give {problem}"
        raise ValueError(
            f"no place of its voxels is known: {found}{sizes}; expected three axes of {LIMITS[0]:g} to {LIMITS[1]:g} "
            "mm a voxel that do not lie in one plane; write the right affine as sform and qform (in nibabel "
            "set_sform and set_qform)"
        )
    return affine


def _read_form(header: Any, name: str) -> tuple[NDArray[np.float64] | None, str]:
    """Return the affine of "sform" or "qform" and what is wrong with it; (None, "") if it is not set."""
    if int(header[f"{name}_code"]) == 0:
        return None, ""
    return _checked(header, getattr(header, f"get_{name}"))


def _checked(header: Any, read: Callable[[], Any]) -> tuple[NDArray[np.float64] | None, str]:
    """Return the affine, in mm, that a header gives, and what is wrong with it: "" if nothing is.

    The affine is None if it gives none. read: the method of the header that does.
    """
    try:
        affine = np.asarray(read(), np.float64)
    except (HeaderDataError, ValueError, ArithmeticError) as error:
        return None, f"values that make no affine ({error})"
    in_mm = _in_mm(header, affine)
    affine = affine if _problem(in_mm) else in_mm
    return affine, _problem(affine)


def _in_mm(header: Any, affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return an affine in mm that is in a header's unit; as it is without a unit."""
    _, factor = _unit(header)
    return affine if factor == 1 else affine * np.array([[factor], [factor], [factor], [1.0]])


def _unit(header: Any) -> tuple[str, float]:
    """Return a header's unit of length, in words and in mm."""
    return UNITS.get(int(header["xyzt_units"]) & 7, ("mm", 1.0))


def _problem(affine: NDArray[np.float64]) -> str:
    """Return what is wrong with an affine (4, 4): "" if it gives each voxel a place."""
    if not np.isfinite(affine).all():
        return "numbers that are not finite"
    sides = voxel_sizes(affine)
    if not sides.all():
        return f"voxels of size 0 along {np.count_nonzero(sides == 0)} of 3 axes"
    if sides.min() < LIMITS[0] or sides.max() > LIMITS[1]:
        return "voxels of " + " x ".join(f"{side:.4g}" for side in sides) + " mm"
    flat = abs(np.linalg.det(affine[:3, :3])) < LEAST_VOLUME * sides.prod()
    return "axes that lie in one plane" if flat or np.isnan(io_orientation(affine)).any() else ""


def _describe(affine: NDArray[np.float64] | None, problem: str) -> str:
    """Return what an sform or qform is, in words."""
    if problem:
        return f"gives {problem}"
    return "is not set" if affine is None else f"is {np.round(affine, 3).tolist()}"


def affine_note(header: Any) -> str:
    """Return what in a header contradicts the affine that `usable_affine` takes from it, in words; "" if nothing does.

    That is a qform, whose voxel sizes are those of pixdim, with voxels of another size than the sform's, or a unit that
    makes no voxels of a head.
    """
    notes = []
    sform, qform = (_read_form(header, name)[0] for name in ("sform", "qform"))
    if sform is not None and qform is not None:
        sides, others = voxel_sizes(sform), voxel_sizes(qform)
        if not np.allclose(sides, others, rtol=ROUNDING, atol=0):
            notes.append(
                f"the sform has voxels of {spacing_text(sides)}, the qform and pixdim of {spacing_text(others)}; "
                "the sform is taken; make them agree"
            )
    words, factor = _unit(header)
    as_written = header.get_best_affine()
    if factor != 1 and np.array_equal(usable_affine(header), as_written):
        notes.append(
            f"the unit is {words}, which makes voxels of {spacing_text(voxel_sizes(as_written) * factor)}; "
            "mm are taken; correct the unit"
        )
    return "; ".join(notes)


def same_affine(affine: NDArray[np.float64], other: NDArray[np.float64]) -> bool:
    """Return whether two affines (4, 4) differ by rounding only: by 0.01 mm, or 1 % of a voxel below 1 mm.

    Far from the origin, 1e-5 of the distance is allowed too.
    """
    allowed = ROUNDING * min(1.0, float(voxel_sizes(other).min()))
    return bool(np.allclose(affine, other, rtol=1e-5, atol=allowed))
