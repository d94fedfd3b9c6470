"""Find regions that no case of a part has, so that a network cannot learn them or its Dice says nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from trainable.core.brats import REGIONS
from trainable.core.errors import InputError
from trainable.core.logger import logger
from trainable.data.cache import read_metadata
from trainable.data.split import Split


def check_regions(folder: Path, split: Split) -> None:
    """Refuse training cases without any tumour; print a warning if no training or no validation case has a region.

    Args:
        folder: the cache, which has the cases of the split.

    Raises:
        InputError: if the seg of each training case is empty.
    """
    missing = empty_regions(folder, split.train)
    if len(missing) == len(REGIONS):
        raise InputError(
            f"none of the {len(split.train)} training cases has a tumour in its seg file, so there is nothing to "
            "learn; put the right seg files there, or choose what their labels mean with --labels"
        )
    parts = {"training": missing, "validation": empty_regions(folder, split.val) if split.val else []}
    empty = [f"{' and '.join(regions)} in no {part} case" for part, regions in parts.items() if regions]
    if empty:
        logger.warning(f"warning: {', '.join(empty)}, so the Dice of such a region says nothing")


def empty_regions(folder: Path, names: Sequence[str]) -> list[str]:
    """Return the regions of which no case has a voxel, in the order of REGIONS.

    Args:
        folder: the cache.
        names: of prepared cases.

    Raises:
        CacheError: if a case is not prepared, see `read_metadata`.
    """
    counts = [read_metadata(folder / name)["foreground"] for name in names]
    return [region for index, region in enumerate(REGIONS) if not any(count[index] for count in counts)]
