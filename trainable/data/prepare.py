"""The data of a training: found, checked, preprocessed and split."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from trainable.core.config import TrainConfig
from trainable.core.errors import InputError
from trainable.core.files import require_working_folder
from trainable.data.cache import cache_folder, grid_spacing, read_labels_in_use, read_metadata
from trainable.data.cache_writer import Reading, prepare
from trainable.data.cases import find_cases
from trainable.data.grid import Spacing
from trainable.data.labels import LABELS_2021, LABELS_2021_ET3, LabelConvention, choose_labels
from trainable.data.spacing import split_on_one_grid
from trainable.data.split import Split


@dataclass(frozen=True)
class Data:
    """The preprocessed cases: the cache's folder, the split, and one message per case that was left out as bad."""

    folder: Path
    split: Split
    skipped: tuple[str, ...] = ()

    @cached_property
    def labels(self) -> LabelConvention:
        """What the values of the seg files mean, see `read_labels_in_use`."""
        return read_labels_in_use(self.folder, [*self.split.train, *self.split.val, *self.split.test])

    @cached_property
    def spacing(self) -> Spacing:
        """The voxel size of these cases in mm, of the axes in LPS; InputError if a case is not prepared."""
        return grid_spacing(self.folder, self.split.train, self.split.val + self.split.test)


def prepare_data(config: TrainConfig, *, quiet: bool = False) -> Data:
    """Find the cases of data_dir, preprocess those that are not cached or have changed, split all good ones.

    Args:
        quiet: print nothing on stderr.

    Raises:
        InputError: for no data_dir, labels that the names do not tell, bad cases (without skip_bad_cases), no good
            case, a cache that cannot be written, a split that cannot be made, or cases of another voxel size than the
            training cases (without resample).
    """
    require_working_folder()
    if config.data_dir is None:
        raise InputError("--data_dir is missing: the folder with one sub-folder per case")
    cases, incomplete = find_cases(config.data_dir, need_seg=True)
    labels = choose_labels(cases, config.labels)
    folder = cache_folder(config.data_dir, config.cache_dir)
    reading = Reading(labels, config.background)
    skip_bad = config.skip_bad_cases
    names, bad = prepare(cases, folder, reading=reading, incomplete=incomplete, skip_bad=skip_bad, quiet=quiet)
    if not quiet:
        print(labels_report(folder, names), file=sys.stderr)
    split, apart = split_on_one_grid(cases, folder, names, config, reading, quiet=quiet)
    return Data(folder, split, tuple(map(str, [*bad, *apart])))


def labels_report(folder: Path, names: Sequence[str]) -> str:
    """Return the convention of prepared cases as a line, and another one if it is that of 2021 and ET is 3 in some."""
    labels = read_labels_in_use(folder, names)
    line = f"labels: {labels}"
    if labels not in LABELS_2021.variants:
        return line
    (value,) = LABELS_2021_ET3.et
    with_3 = [name for name in names if read_metadata(folder / name)["et_value"] == value]
    note = (
        f"{len(with_3)} of {len(names)} cases, such as {with_3[0]}, have 3 and no 4: 3 is read as ET" if with_3 else ""
    )
    return f"{line}; {note}" if note else line
