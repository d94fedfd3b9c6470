"""One voxel size for all cases of a training: cases of another one are refused, or resampled."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from trainable.cases.case_files import Case, CaseError
from trainable.cases.grid import SPACING_TOLERANCE, Spacing, same_spacing, spacing_text
from trainable.core.config import TrainConfig
from trainable.core.errors import InputError
from trainable.core.logger import logger
from trainable.data.cache import CaseMetadata, median_spacing, read_metadata
from trainable.data.cache_check import Reading
from trainable.data.cache_writer import prepare
from trainable.data.split import PARTS, Split


def split_on_one_grid(
    cases: Sequence[Case],
    folder: Path,
    names: Sequence[str],
    config: TrainConfig,
    reading: Reading,
    divide: Callable[[list[str]], Split],
    *,
    begun: bool = False,
    begun_with: Spacing | None = None,
    quiet: bool = False,
) -> tuple[Split, Spacing, list[CaseError]]:
    """Split prepared cases, and see that all of the split have one voxel size.

    That is the median of all cases of the split on each axis, so that it is the same for all seeds and folds of a
    folder's cases. A case agrees with it if no axis differs by more than SPACING_TOLERANCE. With the option `resample`
    the others are prepared again, resampled to it; with `skip_bad_cases` they are left out, and the split is made of
    those that are left.

    Args:
        cases: all that were found.
        folder: the cache.
        names: of the cases in the cache that can be used.
        reading: how they were read, but for their voxel size.
        divide: splits cases, given their names.
        begun: the split is that of a training or sweep that goes on; its cases stay as they are, with a warning.
        begun_with: the voxel size in mm that it has; None for the median of its training cases, as older code had it.
        quiet: print nothing on stderr.

    Returns:
        The split, that voxel size, and the errors of the cases that are left out.

    Raises:
        InputError: naming each case of another voxel size, if it is neither resampled nor left out; or if no split can
            be made.
    """
    left_out: dict[str, CaseError] = {}
    while True:
        split = divide([name for name in names if name not in left_out])
        metadata = {name: read_metadata(folder / name) for part in PARTS for name in getattr(split, part)}
        target = begun_with or median_spacing([metadata[name] for name in (split.train if begun else metadata)])
        apart = [name for name in metadata if not same_spacing(metadata[name]["file_spacing"], target)]
        if not apart or config.resample or begun:
            if apart and not config.resample:
                logger.warning(
                    f"warning: {len(apart)} of {len(metadata)} cases, such as {apart[0]}, have another voxel size than "
                    f"the training's cases, {spacing_text(target)}. It goes on, since it was begun with them"
                )
            resampled = apart if config.resample else []
            _prepare_at(cases, folder, metadata, resampled, target, reading, quiet)
            return split, target, list(left_out.values())
        errors = {name: spacing_error(name, metadata[name]["file_spacing"], target) for name in apart}
        if not config.skip_bad_cases or config.split_file is not None:
            listing = "".join(f"\n  {error}" for error in errors.values())
            raise InputError(
                f"another voxel size than the median of all cases: {len(errors)} of {len(metadata)} cases; resample "
                f"them with --resample (in a sweep --set train.resample=true), or continue without them"
                f"{' with --skip_bad_cases' if config.split_file is None else ''}:{listing}"
            )
        left_out |= errors


def spacing_error(name: str, spacing: Sequence[float], target: Sequence[float]) -> CaseError:
    """Return the error of a case of another voxel size than the cases of a training; target: their median."""
    return CaseError(
        f"{name}: has voxels of {spacing_text(spacing)}; expected {spacing_text(target)}, the median of the "
        f"training's cases, within {SPACING_TOLERANCE:.0%} on each axis"
    )


def _prepare_at(
    cases: Sequence[Case],
    folder: Path,
    metadata: dict[str, CaseMetadata],
    apart: Sequence[str],
    target: Spacing,
    reading: Reading,
    quiet: bool,
) -> None:
    """Prepare cases again that are in the cache in another voxel size than they should be.

    Args:
        metadata: of all cases of the split.
        apart: those to be resampled to `target`; the others keep the voxels of their files.
    """
    by_name = {case.name: case for case in cases}
    outdated: dict[Spacing | Literal["file"], list[Case]] = {target: [], "file": []}
    for name, case in metadata.items():
        wanted: Spacing | Literal["file"] = target if name in apart else "file"
        if case["resampled_to"] != (list(target) if name in apart else None):
            outdated[wanted].append(by_name[name])
    for spacing, chosen in outdated.items():
        if chosen:
            prepare(chosen, folder, reading=replace(reading, spacing=spacing), quiet=True)
            if not quiet:
                size = "the size of their files" if isinstance(spacing, str) else spacing_text(spacing)
                print(f"{len(chosen)} cases were prepared again with voxels of {size}", file=sys.stderr)
