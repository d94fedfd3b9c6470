"""The data of a training: found, checked, preprocessed and split."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property, partial
from pathlib import Path

from trainable.cases.case_search import Survey, survey
from trainable.cases.folder_listing import first_names
from trainable.cases.grid import Spacing, same_spacing
from trainable.cases.labels import LABELS_2021, LABELS_2021_ET3, LabelConvention, choose_labels
from trainable.core.config import TrainConfig
from trainable.core.errors import InputError
from trainable.core.files import require_working_folder
from trainable.core.option_errors import did_you_mean
from trainable.core.storage import Uri
from trainable.data.cache import (
    cache_folder,
    grid_spacing,
    read_contents,
    read_labels_in_use,
    read_metadata,
    sibling_cache,
)
from trainable.data.cache_check import Reading
from trainable.data.cache_writer import place_of_cache, prepare
from trainable.data.fetch import fetch_cases
from trainable.data.patient_split import split_by_patient
from trainable.data.spacing import split_on_one_grid
from trainable.data.split import Split, load_split


@dataclass(frozen=True)
class Data:
    """The preprocessed cases: the cache's folder, the split, and one message per case that was left out as bad.

    Sent to another process it is without what was read of the cases, as that may be on a machine with its own cache.

    target: the voxel size in mm, of the axes in LPS, that they were compared with and resampled to; None to find it in
    the cache.
    """

    folder: Path
    split: Split
    skipped: tuple[str, ...] = ()
    target: Spacing | None = None

    def __getstate__(self) -> dict[str, object]:
        """Return the fields only."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @cached_property
    def labels(self) -> LabelConvention:
        """What the values of the seg files mean, see `read_labels_in_use`."""
        return read_labels_in_use(self.folder, self.split.names)

    @cached_property
    def spacing(self) -> Spacing:
        """The voxel size of these cases in mm, of the axes in LPS; InputError if a case is not prepared."""
        return self.target or grid_spacing(self.folder, self.split.train, self.split.val + self.split.test)

    @cached_property
    def contents(self) -> dict[str, str]:
        """A hash of images and label of each case in a part, by name, as they were when this was first asked for.

        By prepare_data that is done at its end.

        Raises:
            CacheError: from the first access, if a case is not prepared.
        """
        return read_contents(self.folder, self.split.names)


def prepare_data(
    config: TrainConfig, *, quiet: bool = False, begun: bool = False, begun_with: Spacing | None = None
) -> Data:
    """Find the cases of data_dir, preprocess those that are not cached or have changed, split all good ones.

    With another cache_dir, cases that DATA.cache next to data_dir has are copied from there.

    With a split_file only the cases that it names are looked at: no other folder stops a sweep or a training that is
    resumed, and as each of them is needed none is left out as bad.

    Args:
        quiet: print nothing on stderr.
        begun: the split is that of a training or sweep that goes on; it is kept, with a warning, even if it tears a
            patient apart. A config with `resume` is of such a training.
        begun_with: the voxel size in mm that such a training or sweep has, which is kept: with the median of the split
            at hand the cases in the cache would be resampled again. None if it was not noted, by older code.

    Raises:
        InputError: for no data_dir, labels that the names do not tell, bad cases (without skip_bad_cases), no good
            case, a case of the split_file that is missing, a cache that cannot be written, a wrong table of patients, a
            split that cannot be made, a split file that tears a patient apart (without allow_split_patients), or cases
            of another voxel size than the others (without resample). Also if another process prepares them otherwise.
    """
    require_working_folder()
    found, reading, folder = cases_on_disk(config, quiet=quiet)
    assert config.data_dir is not None
    wanted = config.split_file is not None
    if not quiet:
        lines = cases_left_out(found, config.data_dir, config.split_file) if wanted else found.passed_over
        print("".join(f"{line}\n" for line in lines), end="", file=sys.stderr)
    names, bad = prepare(
        found.cases,
        folder,
        reading=reading,
        incomplete=found.errors,
        skip_bad=config.skip_bad_cases and not wanted,
        remedy=remedy_for_bad_cases(config),
        copy_from=None if isinstance(config.data_dir, Uri) else sibling_cache(config.data_dir),
        quiet=quiet,
    )
    if not quiet:
        print(labels_report(folder, names), file=sys.stderr)
    begun = begun or config.resume is not None
    divide = partial(split_by_patient, folder, config, begun=begun, quiet=quiet)
    split, target, apart = split_on_one_grid(
        found.cases, folder, names, config, reading, divide, begun=begun, begun_with=begun_with, quiet=quiet
    )
    data = Data(folder, split, tuple(map(str, [*bad, *apart])), target)
    # read now: another process may prepare the same cases otherwise before they are first asked for
    _ = data.labels, data.contents
    refuse_other_reading(data, reading, resample=config.resample)
    return data


def refuse_other_reading(data: Data, reading: Reading, *, resample: bool) -> None:
    """Raise InputError if a prepared case was read otherwise, by another process that has prepared it since.

    resample: cases of another voxel size than that of `data` were resampled to it.
    """
    for name in data.split.names:
        case = read_metadata(data.folder / name)
        apart = resample and not same_spacing(case["file_spacing"], data.spacing)
        wanted = reading.labels.plain(), reading.background, [*data.spacing] if apart else None
        if wanted != (case["labels"], case["background"], case["resampled_to"]):
            raise InputError(
                f"{data.folder}: another process has prepared {name} otherwise just now, with other --labels, "
                "--background or --resample; give one of the two a --cache_dir of its own"
            )


def cases_on_disk(
    config: TrainConfig, *, quiet: bool = False, outline: Path | None = None
) -> tuple[Survey, Reading, Path]:
    """Return the cases of data_dir as they lie there, how they are read, and the folder of their cache.

    With a split_file only the cases that it names are looked at.

    Args:
        quiet: do not print what is fetched from a URI.
        outline: a folder laid out as the URI that data_dir is, to look at in place of fetching files; None to fetch.

    Raises:
        InputError: for no data_dir, a fold without folds, a case of the split_file that is missing, labels that the
            names do not tell, or no place for a cache.
    """
    if config.fold and not config.folds and config.split_file is None:
        raise InputError(f"fold is {config.fold}, but folds is 0: there are no folds; give their number with folds")
    wanted = None if config.split_file is None else load_split(config.split_file).names
    data_dir = local_folder(config, quiet=quiet) if outline is None else outline
    found = survey(data_dir, need_seg=True, wanted=wanted)
    if found.missing:
        raise InputError(missing_cases(found, data_dir, config.split_file))
    reading = Reading(choose_labels(found.cases, config.labels), config.background)
    if isinstance(config.data_dir, Uri):
        return found, reading, cache_folder(config.data_dir, config.cache_dir)
    return found, reading, place_of_cache(found.cases, reading, data_dir, config.cache_dir)


def local_folder(config: TrainConfig, *, quiet: bool = False) -> Path:
    """Return the folder of the cases: data_dir; if that is a URI, one in the cache with its files, fetched if needed.

    Raises:
        InputError: as fetch_cases; for no data_dir, or no place for a cache.
    """
    if config.data_dir is None:
        raise InputError("--data_dir is missing: the folder with one sub-folder per case")
    if isinstance(config.data_dir, Uri):
        return fetch_cases(config.data_dir, cache_folder(config.data_dir, config.cache_dir), quiet=quiet)
    return config.data_dir


def remedy_for_bad_cases(config: TrainConfig) -> str:
    """Return what to do about bad cases: none that a split_file names can be left out."""
    if config.split_file is not None:
        return f"repair them, as {config.split_file} names them"
    return "repair them, or continue without them with --skip_bad_cases"


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


def missing_cases(found: Survey, data_dir: Path, split_file: Path | None) -> str:
    """Return the message for cases of a split file that are not below data_dir."""
    first, present = found.missing[0], [*(case.name for case in found.cases), *found.others]
    return (
        f"{data_dir}: {len(found.missing)} of the cases that {split_file} names cannot be found: "
        f"{first_names(found.missing)}; expected the folder {data_dir / first}{did_you_mean(first, present)}"
    )


def cases_left_out(found: Survey, data_dir: Path | Uri, split_file: Path | None) -> list[str]:
    """Return a line on the cases below data_dir that a split file does not name; none if there are no such cases."""
    if not found.others:
        return []
    count, names = len(found.others), first_names(found.others)
    return [f"left out: {count} case{'s' * (count > 1)} in {data_dir} that {split_file} does not name: {names}"]
