"""The data of a training: found, checked, preprocessed and split."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from trainable.core.config import TrainConfig
from trainable.core.errors import InputError
from trainable.core.option_errors import did_you_mean
from trainable.data.cache_writer import place_of_cache, prepare
from trainable.data.case_search import Survey, survey
from trainable.data.folder_listing import first_names
from trainable.data.split import Split, load_split, split_cases


@dataclass(frozen=True)
class Data:
    """The preprocessed cases: the cache's folder, the split, and one message per case that was left out as bad."""

    folder: Path
    split: Split
    skipped: tuple[str, ...] = ()


def prepare_data(config: TrainConfig, *, quiet: bool = False) -> Data:
    """Find the cases of data_dir, preprocess those that are not cached or have changed, split all good ones.

    With a split_file only the cases that it names are looked at: no other folder stops a sweep or a training that is
    resumed, and as each of them is needed none is left out as bad.

    Args:
        quiet: print nothing on stderr.

    Raises:
        InputError: for no data_dir, bad cases (without skip_bad_cases), no good case, a case of the split_file that is
            missing, a cache that cannot be written, or a split that cannot be made.
    """
    if config.data_dir is None:
        raise InputError("--data_dir is missing: the folder with one sub-folder per case")
    needed = None if config.split_file is None else load_split(config.split_file)
    wanted = None if needed is None else [*needed.train, *needed.val, *needed.test]
    found = survey(config.data_dir, need_seg=True, wanted=wanted)
    if found.missing:
        raise InputError(missing_cases(found, config.data_dir, config.split_file))
    folder = place_of_cache(found.cases, config.data_dir, config.cache_dir)
    remedy = "repair them, or continue without them with --skip_bad_cases"
    if wanted is not None:
        remedy = f"repair them, as {config.split_file} names them"
    if not quiet:
        lines = found.passed_over if wanted is None else cases_left_out(found, config.data_dir, config.split_file)
        print("".join(f"{line}\n" for line in lines), end="", file=sys.stderr)
    skip_bad = config.skip_bad_cases and wanted is None
    names, bad = prepare(found.cases, folder, incomplete=found.errors, skip_bad=skip_bad, remedy=remedy, quiet=quiet)
    return Data(folder, split_cases(names, config), tuple(map(str, bad)))


def missing_cases(found: Survey, data_dir: Path, split_file: Path | None) -> str:
    """Return the message for cases of a split file that are not below data_dir."""
    first, present = found.missing[0], [*(case.name for case in found.cases), *found.others]
    return (
        f"{data_dir}: {len(found.missing)} of the cases that {split_file} names cannot be found: "
        f"{first_names(found.missing)}; expected the folder {data_dir / first}{did_you_mean(first, present)}"
    )


def cases_left_out(found: Survey, data_dir: Path, split_file: Path | None) -> list[str]:
    """Return a line on the cases below data_dir that a split file does not name; none if there are no such cases."""
    if not found.others:
        return []
    count, names = len(found.others), first_names(found.others)
    return [f"left out: {count} case{'s' * (count > 1)} in {data_dir} that {split_file} does not name: {names}"]
