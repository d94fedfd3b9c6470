"""Split prepared cases so that no patient is in two parts."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from trainable.core.config import TrainConfig
from trainable.core.errors import InputError
from trainable.core.logger import logger
from trainable.data.cache import read_contents, scan_of
from trainable.data.patients import Patients, find_patients, torn_patients
from trainable.data.split import Split, split_cases


def split_by_patient(
    folder: Path, config: TrainConfig, names: Sequence[str], *, begun: bool = False, quiet: bool = False
) -> Split:
    """Return the split of prepared cases; all cases of a patient are in one part.

    Args:
        folder: the cache.
        names: of the cases.
        begun: the split file is that of a training or sweep that goes on; it is kept, with a warning, even if it tears
            a patient apart.
        quiet: do not print on stderr how many patients there are, and which scans are there twice.

    Raises:
        InputError: for a wrong table of patients, a split that cannot be made, or a split file that tears a patient
            apart (without allow_split_patients).
    """
    scans = {name: scan_of(content) for name, content in read_contents(folder, names).items()}
    if config.split_file is not None and begun:
        split = split_cases(names, config)
        warn_of_torn_patients(split, names, scans, config)
        return split
    patients = find_patients(names, scans, config.patients)
    split = split_cases(names, config, patients.of_case)
    refuse_torn_patients(split, patients, config)
    if not quiet and (summary := patients.summary()):
        print(summary, file=sys.stderr)
    return split


def refuse_torn_patients(split: Split, patients: Patients, config: TrainConfig) -> None:
    """Raise InputError if a split has cases of one patient in several parts, unless allow_split_patients is set."""
    if not config.allow_split_patients and (torn := torn_patients(split, patients.of_case)):
        raise InputError(
            f"{config.split_file}: these patients have cases in several parts, so that scores would be of patients "
            f"that were trained on: {torn}; put each into one part, or say --allow_split_patients"
        )


def warn_of_torn_patients(split: Split, names: Sequence[str], scans: dict[str, str], config: TrainConfig) -> None:
    """Print a warning if a split that was begun with tears a patient apart; nothing with allow_split_patients."""
    try:
        refuse_torn_patients(split, find_patients(names, scans, config.patients), config)
    except InputError as error:
        logger.warning(f"warning: {error}. It goes on, since it was begun with this split")
