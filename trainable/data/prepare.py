"""The data of a training: found, checked, preprocessed and split."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trainable.core.config import TrainConfig
from trainable.core.errors import InputError
from trainable.core.files import require_working_folder
from trainable.data.cache import cache_folder
from trainable.data.cache_writer import prepare
from trainable.data.cases import find_cases
from trainable.data.split import Split, split_cases


@dataclass(frozen=True)
class Data:
    """The preprocessed cases: the cache's folder, the split, and one message per case that was left out as bad."""

    folder: Path
    split: Split
    skipped: tuple[str, ...] = ()


def prepare_data(config: TrainConfig, *, quiet: bool = False) -> Data:
    """Find the cases of data_dir, preprocess those that are not cached or have changed, split all good ones.

    Args:
        quiet: print nothing on stderr.

    Raises:
        InputError: for no data_dir, bad cases (without skip_bad_cases), no good case, a cache that cannot be written,
            or a split that cannot be made.
    """
    require_working_folder()
    if config.data_dir is None:
        raise InputError("--data_dir is missing: the folder with one sub-folder per case")
    cases, incomplete = find_cases(config.data_dir, need_seg=True)
    folder = cache_folder(config.data_dir, config.cache_dir)
    names, bad = prepare(cases, folder, incomplete=incomplete, skip_bad=config.skip_bad_cases, quiet=quiet)
    return Data(folder, split_cases(names, config), tuple(map(str, bad)))
