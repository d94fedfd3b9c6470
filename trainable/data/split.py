"""Split cases into train, val and test."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from trainable.core.config import TrainConfig
from trainable.core.errors import InputError
from trainable.core.files import atomic_write_text
from trainable.core.option_errors import did_you_mean

PARTS = ("train", "val", "test")


@dataclass(frozen=True)
class Split:
    """Case names of each part, each sorted."""

    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        """The names of all cases that are in a part, sorted."""
        return sorted([*self.train, *self.val, *self.test])

    def digest(self) -> str:
        """Return 12 hex digits that differ if the split does."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:12]


def evenly_spaced(names: Sequence[str], count: int) -> list[str]:
    """Return `count` of these names, evenly spread; all names if count is 0 or at least their number."""
    if not count or count >= len(names):
        return list(names)
    return [names[index * len(names) // count] for index in range(count)]


def split_cases(names: Sequence[str], config: TrainConfig, patients: Mapping[str, str] | None = None) -> Split:
    """Split cases by the config's split_file if given, else by folds if not 0, else by fractions.

    All cases of a patient are in one part: folds and fractions are of the patients. Their order does not matter, nor
    does that of names. Cases that the split file does not name are in no part. With folds the test part, test_fraction
    of the patients, is taken first and is the same for every fold. A part whose fraction is used and above 0 has at
    least one patient if there are three or more.

    Args:
        names: of the cases.
        patients: the patient of each case, by name; None if each case is a patient of its own. The split file is not
            checked by it, see patients.torn_patients.

    Raises:
        InputError: for repeated names, a wrong split file or one that names other cases, fewer patients than folds, or
            no case left to train on.
    """
    _refuse_repeats(names, "the cases")
    if config.split_file:
        return _split_by_file(config.split_file, sorted(names))
    patient_of = patients or {name: name for name in names}
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(patient_of[name], []).append(name)
    order = [str(patient) for patient in np.random.default_rng(config.seed).permutation(sorted(groups))]
    count = len(order)
    of_all = f"of {count} cases" if count == len(names) else f"of {count} patients ({len(names)} cases)"

    def share(fraction: float) -> int:
        least = 1 if fraction > 0 and count >= 3 else 0
        return max(least, round(fraction * count))

    def cases_of(chosen: Iterable[str]) -> tuple[str, ...]:
        return tuple(sorted(name for patient in chosen for name in groups[patient]))

    test, rest = order[: share(config.test_fraction)], order[share(config.test_fraction) :]
    if len(rest) < config.folds:
        raise InputError(f"folds is {config.folds}, but {of_all} {len(rest)} are left besides test; lower it")
    val = rest[config.fold :: config.folds] if config.folds else rest[: share(config.val_fraction)]
    train = set(rest) - set(val)
    if not train:
        raise InputError(
            f"{of_all} none is left to train on: test takes {len(test)}, val {len(val)}; "
            f"add cases, or lower test_fraction or val_fraction"
        )
    return Split(cases_of(train), cases_of(val), cases_of(test))


def fold_splits(split: Split, folds: int, seed: int, patients: Mapping[str, str] | None = None) -> list[Split]:
    """Divide the train and val cases of a split anew into folds, each of which is val once; test stays.

    All cases of a patient are in one fold, and the folds have equally many patients, to within one.

    Args:
        folds: their number.
        seed: of the order in which patients are dealt to the folds.
        patients: the patient of each case, by name; None if each case is a patient of its own.

    Returns:
        The split of each fold: val is the fold, train the other folds.

    Raises:
        InputError: for fewer than 2 folds, or fewer patients than folds.
    """
    groups: dict[str, list[str]] = {}
    for name in sorted(split.train + split.val):
        groups.setdefault(patients[name] if patients else name, []).append(name)
    if not 2 <= folds <= len(groups):
        raise InputError(
            f"--folds is {folds}; expected 2 to {len(groups)}, the number of patients among the train and val cases"
        )
    order = [str(patient) for patient in np.random.default_rng(seed).permutation(sorted(groups))]
    parts = [sorted(name for patient in order[index::folds] for name in groups[patient]) for index in range(folds)]
    cases = {name for part in parts for name in part}
    return [Split(tuple(sorted(cases.difference(part))), tuple(part), split.test) for part in parts]


def _split_by_file(path: Path, names: list[str]) -> Split:
    """Return the split in a file, whose names must all be among these."""
    split = load_split(path)
    known = set(names)
    for part in PARTS:
        unknown = [name for name in getattr(split, part) if name not in known]
        if unknown:
            raise InputError(
                f"{path}: {part} names {unknown[0]}{did_you_mean(unknown[0], names)}, which is not among the "
                f"{len(names)} usable cases ({len(unknown)} such names in {part}); correct the name or add the case"
            )
    return split


def seen_line(seen: Mapping[str, Sequence[str]], split: Split) -> str:
    """Return "2 of 3 val cases were seen by the pretrained weights", to be printed with scores; "" if none was.

    seen: by part the names of such cases, for a part that has any.
    """
    parts = [f"{len(names)} of {len(getattr(split, part))} {part} cases" for part, names in seen.items()]
    return f"{' and '.join(parts)} were seen by the pretrained weights" if parts else ""


def save_split(split: Split, path: Path, *, fsync: bool = True) -> None:
    """Write a split as JSON that load_split and --split_file read. fsync: as for atomic_write."""
    atomic_write_text(Path(path), json.dumps(asdict(split), indent=2) + "\n", fsync=fsync)


def load_split(path: Path) -> Split:
    """Read a split: JSON {"train": [...], "val": [...], "test": [...]}, of which val and test may be empty.

    Raises:
        InputError: for a file that is missing or has another content, a name that appears twice, or an empty train.
    """
    layout = 'JSON {"train": [names], "val": [names], "test": [names]}'
    try:
        content = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); expected {layout}") from None
    if not isinstance(content, dict) or set(content) != set(PARTS):
        present = sorted(content) if isinstance(content, dict) else type(content).__name__
        raise InputError(f"{path}: contains {present}; expected {layout}")
    for part, names in content.items():
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise InputError(f"{path}: {part} is not a list of names; expected {layout}")
    _refuse_repeats([name for part in PARTS for name in content[part]], str(path))
    if not content["train"]:
        raise InputError(f"{path}: train is empty; expected the name of at least one case")
    return Split(**{part: tuple(sorted(content[part])) for part in PARTS})


def _refuse_repeats(names: Sequence[str], source: str) -> None:
    """Raise InputError if a name appears twice."""
    repeated = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if repeated:
        raise InputError(f"{source}: {', '.join(repeated[:5])} appears more than once; each case belongs to one part")
