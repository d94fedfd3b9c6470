"""The data of a training: found, checked, preprocessed and split."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from trainable.cache import cache_folder, prepare
from trainable.cases import Split, find_cases, split_cases
from trainable.config import InputError, TrainConfig


@dataclass(frozen=True)
class Data:
    """Where the preprocessed cases lie, which are for what, and which were left out as bad."""

    folder: Path
    split: Split
    skipped: tuple[str, ...] = ()


def prepare_data(config: TrainConfig, *, quiet: bool = False) -> Data:
    """Find the cases of data_dir, preprocess those that are not cached yet, split them.

    Raises:
        InputError: for bad cases (without skip_bad_cases), for no cases, for a split that cannot be made.
    """
    if config.data_dir is None:
        raise InputError("data_dir is missing: the folder with one folder a case")
    cases, incomplete = find_cases(config.data_dir, need_seg=True)
    folder = cache_folder(config.data_dir, config.cache_dir)
    names, unusable = prepare(cases, folder, skip_bad=True, quiet=quiet)
    bad = tuple(str(error) for error in [*incomplete, *unusable])
    if bad:
        listing = "".join(f"\n  {error}" for error in bad)
        message = f"{len(bad)} of {len(cases) + len(incomplete)} cases cannot be used"
        if not config.skip_bad_cases:
            raise InputError(f"{message}; mend them, or go on without them with skip_bad_cases:{listing}")
        print(f"{message} and are left out:{listing}", file=sys.stderr)
    return Data(folder, split_cases(names, config), bad)
