"""Find the cases below a folder, and name what is no case: nothing is passed over in silence."""

from __future__ import annotations

import re
import shlex
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainable.cases.case_files import (
    LAYOUT,
    Case,
    CaseError,
    case_folder,
    case_name,
    case_of,
    foreign_case,
    has_modality,
    unreadable_case,
)
from trainable.cases.folder_listing import Listing, list_folder
from trainable.core.errors import InputError

DEPTH = 4  # levels of folders below DATA that are searched
# A folder of such a name is a case even if it is empty or cannot be read; BraTS2021_TrainingData is a folder of cases.
CASE_NAME = re.compile(r"brats.*\d", re.IGNORECASE)
MSD_FOLDERS = {"imagesTr", "labelsTr"}


class NoCaseError(InputError):
    """The error of a folder that has no case."""


@dataclass(frozen=True)
class Survey:
    """What is below a folder.

    Attributes:
        cases: the whole cases, sorted by name; of those asked for, if any were.
        errors: one per case that lacks a file or cannot be read, sorted by name.
        passed_over: one line per kind of thing that is no case, with its number and the first example.
        missing: names asked for that no folder has.
        others: names of whole cases that were not asked for.
    """

    cases: list[Case]
    errors: list[CaseError]
    passed_over: list[str]
    missing: list[str]
    others: list[str]


@dataclass(frozen=True)
class _Kind:
    """A kind of thing that is passed over, in words: one of them, and several."""

    one: str
    several: str


STRAY = _Kind("NIfTI file beside the cases", "NIfTI files beside the cases")
NO_CASE = _Kind("folder with NIfTI files but no case of its name", "folders with NIfTI files but no case of their name")
EMPTY = _Kind("folder without a NIfTI file", "folders without a NIfTI file")
COPY = _Kind("incomplete copy of a case that is whole elsewhere", "incomplete copies of cases that are whole elsewhere")
DANGLING = _Kind("link to nothing", "links to nothing")
UNREADABLE = _Kind("folder that cannot be read", "folders that cannot be read")
DEEP = _Kind(f"folder whose sub-folders lie too deep (over {DEPTH} levels)", f"folders with more than {DEPTH} levels")
MSD = _Kind("folder laid out as MSD's (see `voxtune convert_msd`)", "folders laid out as MSD's")


@dataclass(frozen=True)
class _PassedOver:
    """A file or folder that is no case."""

    kind: _Kind
    path: Path


@dataclass(frozen=True)
class _BadCase:
    """A case that cannot be used."""

    folder: Path
    error: CaseError


_Finding = Case | _BadCase | _PassedOver


def find_cases(data_dir: Path, *, need_seg: bool) -> tuple[list[Case], list[CaseError]]:
    """Return the cases and the errors that `survey` finds."""
    found = survey(data_dir, need_seg=need_seg)
    return found.cases, found.errors


def survey(data_dir: Path, *, need_seg: bool, wanted: Collection[str] | None = None) -> Survey:
    """Return the cases below a folder, down to DEPTH levels, and what is no case.

    A folder is a case if it has a modality of its own name, or if it is named BraTS...NUMBER and has no case below it.
    What is in a case's folder is not searched.

    Args:
        need_seg: a case without seg is an error.
        wanted: the names of the cases to look for; the errors of others are left out. None for all.

    Raises:
        NoCaseError: if the folder cannot be read, or without `wanted` it has no case; the message names the expected
            layout, and what is there.
        InputError: if there is no such folder, or two folders have the same case.
    """
    try:
        if not data_dir.is_dir():
            raise InputError(f"{data_dir}: no such folder; expected a folder laid out as {LAYOUT}")
        listing = list_folder(data_dir)
    except OSError as error:
        raise NoCaseError(f"{data_dir}: cannot be read ({error.strerror})") from None
    looked_for = frozenset(wanted or ())
    found = [*_below(data_dir, listing, 0, looked_for, need_seg), *_stray(listing)]
    by_name = _cases_by_name([case for case in found if isinstance(case, Case)])
    bad = [case for case in found if isinstance(case, _BadCase)]
    copies = [case for case in bad if case_name(case.folder) in by_name]
    bad = [case for case in bad if case not in copies]
    passed_over = [item for item in found if isinstance(item, _PassedOver)]
    passed_over += [_PassedOver(COPY, case.folder) for case in copies]
    if wanted is None:
        if not by_name and not bad:
            raise NoCaseError(_no_case(data_dir, listing, passed_over))
        looked_for = frozenset([*by_name, *(case_name(case.folder) for case in bad)])
    _refuse_twice({name: cases for name, cases in by_name.items() if name in looked_for})
    bad = sorted(
        (case for case in bad if case_name(case.folder) in looked_for), key=lambda case: case_name(case.folder)
    )
    seen = {*by_name, *(case_name(case.folder) for case in bad)}
    return Survey(
        cases=[by_name[name][0] for name in sorted(by_name) if name in looked_for],
        errors=[case.error for case in bad],
        passed_over=_lines(passed_over),
        missing=sorted(looked_for - seen),
        others=sorted(by_name.keys() - looked_for),
    )


def case_around(folder: Path, data_dir: Path) -> Path | None:
    """Return the case's folder below data_dir that a folder is or lies in; None if there is none.

    The folder need not exist.
    """
    folder, data_dir = folder.resolve(), data_dir.resolve()
    for place in (folder, *folder.parents):
        if place.is_relative_to(data_dir) and place.is_dir() and has_modality(place, list_folder(place)):
            return place
    return None


def _below(folder: Path, listing: Listing, level: int, wanted: frozenset[str], need_seg: bool) -> Iterator[_Finding]:
    """Yield what the sub-folders of a folder at this level are, and its dangling links."""
    yield from (_PassedOver(DANGLING, path) for path in listing.dangling)
    if level == DEPTH and listing.folders:
        yield _PassedOver(DEEP, folder)
        return
    for path in listing.folders:
        if not (path.is_symlink() and folder.resolve().is_relative_to(path.resolve())):  # a link to a folder above it
            yield from _visit(path, level + 1, wanted, need_seg)


def _visit(folder: Path, level: int, wanted: frozenset[str], need_seg: bool) -> Iterator[_Finding]:
    """Yield what a folder at this level is: a case, or cases below it and what is none."""
    surely_a_case = case_name(folder) in wanted
    named_as_a_case = surely_a_case or CASE_NAME.fullmatch(case_name(folder)) is not None
    try:
        listing = list_folder(folder)
    except OSError as error:
        yield _BadCase(folder, unreadable_case(folder, error)) if named_as_a_case else _PassedOver(UNREADABLE, folder)
        return
    if surely_a_case or has_modality(folder, listing) or foreign_case(listing):
        yield _case_or_error(folder, listing, need_seg)
        return
    if _is_msd(listing):
        yield _PassedOver(MSD, folder)
        return
    below = list(_below(folder, listing, level, wanted, need_seg))
    if any(isinstance(finding, Case | _BadCase) for finding in below):
        yield from [*below, *_stray(listing)]
    elif named_as_a_case:
        yield _case_or_error(folder, listing, need_seg)
    elif all(isinstance(finding, _PassedOver) and finding.kind == EMPTY for finding in below):
        yield _PassedOver(NO_CASE if listing.volumes else EMPTY, folder)
    else:
        yield from [*below, *([_PassedOver(NO_CASE, folder)] if listing.volumes else [])]


def _stray(listing: Listing) -> list[_PassedOver]:
    """Return the NIfTI files in a folder that has cases below it."""
    return [_PassedOver(STRAY, path) for path in listing.volumes.values()]


def _case_or_error(folder: Path, listing: Listing, need_seg: bool) -> Case | _BadCase:
    """Return the case in a folder, or why it cannot be used."""
    try:
        return case_of(folder, listing, need_seg=need_seg)
    except CaseError as error:
        return _BadCase(folder, error)


def _is_msd(listing: Listing) -> bool:
    """Return whether a folder is laid out as those of the Medical Segmentation Decathlon."""
    return {path.name for path in listing.folders} >= MSD_FOLDERS


def _cases_by_name(cases: Sequence[Case]) -> dict[str, list[Case]]:
    """Return the cases of each name; one folder that is reached by several paths counts once."""
    by_name: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        same = by_name[case.name]
        if not same or case_folder(case).resolve() not in [case_folder(other).resolve() for other in same]:
            same.append(case)
    return dict(by_name)


def _refuse_twice(by_name: dict[str, list[Case]]) -> None:
    """Raise InputError if several folders have the same case; the message names two folders of each such case."""
    twice = [
        f"{name}: {case_folder(cases[0])} and {case_folder(cases[1])}" for name, cases in by_name.items() if cases[1:]
    ]
    if twice:
        listing = "".join(f"\n  {line}" for line in twice[:5])
        raise InputError(
            f"{len(twice)} case names are there twice; expected each once, remove one of the two:{listing}"
        )


def _lines(items: Sequence[_PassedOver]) -> list[str]:
    """Return one line per kind, with the number of things of the kind and the first of them."""
    by_kind: dict[_Kind, list[Path]] = defaultdict(list)
    for item in items:
        by_kind[item.kind].append(item.path)
    return [
        f"passed over: 1 {kind.one}, {paths[0]}" if len(paths) == 1
        else f"passed over: {len(paths)} {kind.several}, such as {paths[0]}"
        for kind, paths in by_kind.items()
    ]  # fmt: skip


def _no_case(data_dir: Path, listing: Listing, passed_over: Sequence[_PassedOver]) -> str:
    """Return the message for a folder without a case."""
    if has_modality(data_dir, listing):
        return (
            f"{data_dir}: contains no case; this folder looks like one case, "
            f"give the folder above it: {data_dir.resolve().parent}"
        )
    above = data_dir.resolve().parent
    places = [data_dir, *(item.path for item in passed_over if item.kind == MSD)]
    places += [above] if data_dir.resolve().name in MSD_FOLDERS else []
    for place in places:
        if _is_msd(list_folder(place)):
            source = place.resolve()
            command = shlex.join(["voxtune", "convert_msd", str(source), f"{source}_cases"])
            return (
                f"{data_dir}: contains no case; {place} is laid out as the Medical Segmentation Decathlon is, such as "
                f"Task01_BrainTumour, with all modalities in one file; make cases of it with: {command}"
            )
    return "\n  ".join([f"{data_dir}: contains no case; expected {LAYOUT}", *_lines(passed_over)])
