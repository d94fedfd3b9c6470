"""The data of a training: found, checked, preprocessed and split."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from trainable.core.config import TrainConfig
from trainable.core.errors import InputError
from trainable.data.cache import cache_folder, grid_spacing
from trainable.data.cache_writer import Reading, prepare
from trainable.data.cases import find_cases
from trainable.data.grid import Spacing
from trainable.data.spacing import split_on_one_grid
from trainable.data.split import Split


@dataclass(frozen=True)
class Data:
    """The preprocessed cases: the cache's folder, the split, and one message per case that was left out as bad."""

    folder: Path
    split: Split
    skipped: tuple[str, ...] = ()

    @cached_property
    def spacing(self) -> Spacing:
        """The voxel size of these cases in mm, of the axes in LPS; InputError if a case is not prepared."""
        return grid_spacing(self.folder, self.split.train, self.split.val + self.split.test)


def prepare_data(config: TrainConfig, *, quiet: bool = False) -> Data:
    """Find the cases of data_dir, preprocess those that are not cached or have changed, split all good ones.

    Args:
        quiet: print nothing on stderr.

    Raises:
        InputError: for no data_dir, bad cases (without skip_bad_cases), no good case, a cache that cannot be written,
            a split that cannot be made, or cases of another voxel size than the training cases (without resample).
    """
    if config.data_dir is None:
        raise InputError("--data_dir is missing: the folder with one sub-folder per case")
    cases, incomplete = find_cases(config.data_dir, need_seg=True)
    folder = cache_folder(config.data_dir, config.cache_dir)
    names, bad = prepare(
        cases,
        folder,
        reading=Reading(config.background),
        incomplete=incomplete,
        skip_bad=config.skip_bad_cases,
        quiet=quiet,
    )
    split, apart = split_on_one_grid(cases, folder, names, config, quiet=quiet)
    return Data(folder, split, tuple(map(str, [*bad, *apart])))
