"""What prepare_data would do, told without preprocessing a case: for `voxtune launch --dry_run`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from trainable.cases.labels import LabelConvention
from trainable.core.config import TrainConfig
from trainable.core.errors import InputError
from trainable.core.storage import Uri
from trainable.data.cache import cache_folder, read_contents, scan_of
from trainable.data.cache_check import is_of_source
from trainable.data.fetch import outline
from trainable.data.patient_split import refuse_torn_patients
from trainable.data.patients import find_patients
from trainable.data.prepare import cases_on_disk, remedy_for_bad_cases
from trainable.data.split import Split, split_cases


@dataclass(frozen=True)
class Preview:
    """The cases of a folder as they were found.

    cache: folder of the preprocessed cases. split: of all whole cases; those that turn out to be bad when they are
    preprocessed, or to be the same scan under two names, change it. ready: names of the cases that are preprocessed
    already. left_out: a line per case that lacks a file, and per kind of thing that is no case.
    """

    cache: Path
    labels: LabelConvention
    split: Split
    ready: tuple[str, ...]
    left_out: tuple[str, ...]


def preview_data(config: TrainConfig) -> Preview:
    """Find and split the cases of data_dir; no image is read or fetched, and nothing is written.

    Raises:
        InputError: as prepare_data for what files and names tell: no data_dir, no case, cases that lack a file
            (without skip_bad_cases), labels that the names do not tell, no place for a cache, a table of patients or a
            split that is wrong; for cases at a URI also if the store cannot be listed.
    """
    if not isinstance(config.data_dir, Uri):
        return _preview(config)
    place = config.data_dir.partition("?")[0]
    with outline(config.data_dir, cache_folder(config.data_dir, config.cache_dir)) as folder:
        try:
            found = _preview(config, folder)
        except InputError as error:
            raise InputError(str(error).replace(str(folder), place)) from None
        return replace(found, left_out=tuple(line.replace(str(folder), place) for line in found.left_out))


def _preview(config: TrainConfig, folder: Path | None = None) -> Preview:
    """Return what preview_data does; folder: an outline of the URI that data_dir is, None if it is a folder."""
    found, reading, cache = cases_on_disk(config, outline=folder)
    if found.errors and not (config.skip_bad_cases and config.split_file is None):
        listing = "".join(f"\n  {error}" for error in found.errors)
        count = len(found.cases) + len(found.errors)
        raise InputError(
            f"{len(found.errors)} of {count} cases cannot be used; {remedy_for_bad_cases(config)}:{listing}"
        )
    names = [case.name for case in found.cases]
    ready = [case.name for case in found.cases if is_of_source(cache, reading, case)]
    scans = {name: scan_of(content) for name, content in read_contents(cache, ready).items()}
    patients = find_patients(names, scans, config.patients)
    split = split_cases(names, config, patients.of_case)
    refuse_torn_patients(split, patients, config)
    return Preview(cache, reading.labels, split, tuple(ready), (*map(str, found.errors), *found.passed_over))
