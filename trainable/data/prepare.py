"""The data of a training: found, checked, preprocessed and split."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from trainable.core.config import TrainConfig
from trainable.core.errors import InputError
from trainable.core.logger import logger
from trainable.data.cache import cache_folder, read_contents, scan_of
from trainable.data.cache_writer import prepare
from trainable.data.cases import find_cases
from trainable.data.patients import Patients, find_patients, torn_patients
from trainable.data.split import Split, split_cases


@dataclass(frozen=True)
class Data:
    """The preprocessed cases: the cache's folder, the split, and one message per case that was left out as bad."""

    folder: Path
    split: Split
    skipped: tuple[str, ...] = ()

    @cached_property
    def contents(self) -> dict[str, str]:
        """A hash of images and label of each case in a part, by name, as they were when this was first asked for.

        Raises:
            CacheError: from the first access, if a case is not prepared.
        """
        return read_contents(self.folder, self.split.names)


def prepare_data(config: TrainConfig, *, quiet: bool = False, begun: bool = False) -> Data:
    """Find the cases of data_dir, preprocess those that are not cached or have changed, split all good ones.

    Args:
        quiet: print nothing on stderr.
        begun: the split is that of a training or sweep that goes on; it is kept, with a warning, even if it tears a
            patient apart. A config with `resume` is of such a training.

    Raises:
        InputError: for no data_dir, bad cases (without skip_bad_cases), no good case, a cache that cannot be written,
            a wrong table of patients, a split that cannot be made, or a split file that tears a patient apart (without
            allow_split_patients).
    """
    if config.data_dir is None:
        raise InputError("--data_dir is missing: the folder with one sub-folder per case")
    cases, incomplete = find_cases(config.data_dir, need_seg=True)
    folder = cache_folder(config.data_dir, config.cache_dir)
    names, bad = prepare(cases, folder, incomplete=incomplete, skip_bad=config.skip_bad_cases, quiet=quiet)
    scans = {name: scan_of(content) for name, content in read_contents(folder, names).items()}
    if config.split_file is not None and (begun or config.resume is not None):
        split = split_cases(names, config)
        warn_of_torn_patients(split, names, scans, config)
    else:
        patients = find_patients(names, scans, config.patients)
        split = split_cases(names, config, patients.of_case)
        refuse_torn_patients(split, patients, config)
        if not quiet and (summary := patients.summary()):
            print(summary, file=sys.stderr)
    if not quiet and (unused := sorted({*names} - {*split.names})):
        more = f" and {len(unused) - 5} more" if len(unused) > 5 else ""
        print(f"in no part of {config.split_file}, not used: {', '.join(unused[:5])}{more}", file=sys.stderr)
    return Data(folder, split, tuple(map(str, bad)))


def refuse_torn_patients(split: Split, patients: Patients, config: TrainConfig) -> None:
    """Raise InputError if a split has cases of one patient in several parts, unless allow_split_patients is set."""
    if not config.allow_split_patients and (torn := torn_patients(split, patients.of_case)):
        raise InputError(
            f"{config.split_file}: these patients have cases in several parts, so that scores would be of patients "
            f"that were trained on: {torn}; put each into one part, or say --allow_split_patients"
        )


def warn_of_torn_patients(split: Split, names: list[str], scans: dict[str, str], config: TrainConfig) -> None:
    """Print a warning if a split that was begun with tears a patient apart; nothing with allow_split_patients."""
    try:
        refuse_torn_patients(split, find_patients(names, scans, config.patients), config)
    except InputError as error:
        logger.warning(f"warning: {error}. It goes on, since it was begun with this split")
