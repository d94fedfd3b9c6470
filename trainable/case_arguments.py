"""The cases in the folders that a user names: each a case's folder or a folder of cases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trainable.cases.case_files import Case, CaseError, case_folder, case_of, foreign_case, has_modality
from trainable.cases.case_search import NoCaseError, Survey, survey
from trainable.cases.folder_listing import list_folder
from trainable.core.errors import InputError
from trainable.core.storage import refuse_uri


@dataclass(frozen=True)
class NamedCases:
    """What is in the folders that a user names.

    Attributes:
        cases: the whole ones, in the order of the arguments.
        errors: one per case that lacks a file or cannot be read.
        no_case: one line per argument that neither is a case nor has one.
        passed_over: lines on what else is in the folders, see Survey.
    """

    cases: list[Case]
    errors: list[CaseError]
    no_case: list[str]
    passed_over: list[str]


def find_all(paths: Sequence[Path]) -> NamedCases:
    """Return the cases in these folders, and what is none; a folder that is named twice counts once.

    Raises:
        InputError: if a path does not exist, two cases have one name, or there is no case at all.
    """
    found, no_case = list[Survey](), list[str]()
    for path in paths:
        try:
            found.append(cases_in(path))
        except NoCaseError as error:
            no_case.append(str(error))
    if not found:
        raise InputError("\n".join(no_case))
    return NamedCases(
        cases=_each_once([case for survey in found for case in survey.cases]),
        errors=[error for survey in found for error in survey.errors],
        no_case=no_case,
        passed_over=[line for survey in found for line in survey.passed_over],
    )


def cases_in(path: Path) -> Survey:
    """Return the case that a folder is, or what it contains.

    Raises:
        NoCaseError: if it is a file, cannot be read or has no case.
        InputError: if it does not exist or is a URI, or two folders in it have the same case.
    """
    if path.is_dir():
        return _one_case(path) or survey(path, need_seg=False)
    if not path.exists():
        refuse_uri(path, "copy the cases to a folder of this machine, as `aws s3 sync` does, and give that folder")
        raise InputError(f"{path}: no such folder; expected a case's folder or a folder of cases")
    raise NoCaseError(f"{path}: is a file; expected a case's folder or a folder of cases")


def _one_case(folder: Path) -> Survey | None:
    """Return the case that a folder is, whole or not; None if it is no case."""
    try:
        listing = list_folder(folder)
        if not (has_modality(folder, listing) or foreign_case(listing)):
            return None
        return Survey([case_of(folder, listing, need_seg=False)], [], [], [], [])
    except CaseError as error:
        return Survey([], [error], [], [], [])
    except OSError as error:
        raise NoCaseError(f"{folder}: cannot be read ({error.strerror})") from None


def _each_once(cases: Sequence[Case]) -> list[Case]:
    """Return the cases without those that are there by several paths; raise InputError if two have one name."""
    by_name: dict[str, Case] = {}
    for case in cases:
        first, second = (case_folder(same) for same in (by_name.setdefault(case.name, case), case))
        if first.resolve() != second.resolve():
            raise InputError(
                f"the name {case.name} is given twice, {first} and {second}, and one prediction would overwrite the "
                "other; expected each name once: leave one out, or predict it into another --out"
            )
    return list(by_name.values())
