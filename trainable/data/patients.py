"""Which cases are of one patient, so that a split keeps them in one part."""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainable.core.errors import InputError
from trainable.core.option_errors import did_you_mean
from trainable.data.split import PARTS, Split

TIME_POINT = re.compile(r"(.+-\d{4,})-\d{3}")  # BraTS since 2023: BraTS-GLI-00000-000
COLUMNS = ("case", "patient")
MAX_LISTED = 10  # cases or patients that a message names


@dataclass(frozen=True)
class Patients:
    """Which cases are of one patient.

    Attributes:
        of_case: the patient of each case, both by name.
        repeated_scans: the cases of each scan that is there under several names, each group sorted.
    """

    of_case: dict[str, str]
    repeated_scans: tuple[tuple[str, ...], ...] = ()

    def summary(self) -> str:
        """Return a line on the scans that are there twice, and one if there are fewer patients than cases; "" else."""
        lines = []
        if self.repeated_scans:
            groups = "; ".join(" and ".join(names) for names in self.repeated_scans[:MAX_LISTED])
            more = f"; and {len(self.repeated_scans) - MAX_LISTED} more" * (len(self.repeated_scans) > MAX_LISTED)
            lines.append(f"the same images under several names, taken as one patient: {groups}{more}")
        count = len(set(self.of_case.values()))
        if count < len(self.of_case):
            lines.append(f"{len(self.of_case)} cases of {count} patients; all cases of a patient are in one part")
        return "\n".join(lines)


def patient_in_name(case: str) -> str:
    """Return the patient in a case's name: the name without its time point, as in BraTS-GLI-00000-000, if it has one.

    A name of another pattern, such as BraTS2021_00000, is a patient of its own.
    """
    match = TIME_POINT.fullmatch(case)
    return match[1] if match else case


def find_patients(names: Sequence[str], scans: Mapping[str, str], table: Path | None = None) -> Patients:
    """Return which of these cases are of one patient: by a table if given, else by their names, and by equal scans.

    Args:
        names: of the cases.
        scans: scan_hash of each case, by name; a case that is not in it is compared with none.
        table: CSV with the columns case and patient.

    Raises:
        InputError: if the table cannot be read, contradicts itself or lacks a case.
    """
    patients = {name: patient_in_name(name) for name in names} if table is None else read_patients(table, names)
    by_scan: defaultdict[str, list[str]] = defaultdict(list)
    for name in sorted(names):
        if name in scans:
            by_scan[scans[name]].append(name)
    repeated = tuple(tuple(same) for same in by_scan.values() if len(same) > 1)
    for same in repeated:
        joined = {patients[name] for name in same}
        patients = {name: min(joined) if patient in joined else patient for name, patient in patients.items()}
    return Patients(patients, repeated)


def read_patients(path: Path, names: Iterable[str]) -> dict[str, str]:
    """Return the patient of each of these cases from a CSV; its other lines are not used.

    Raises:
        InputError: if the file is missing, has other columns, names a case twice with different patients, or has no
            patient for one of these cases; all such cases are listed, up to MAX_LISTED.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = list(csv.DictReader(file, skipinitialspace=True))
            header = list(lines[0]) if lines else []
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read ({error}); expected CSV with the header case,patient") from None
    if not set(COLUMNS) <= set(header):
        present = ",".join(map(str, header)) or "nothing below its header"
        raise InputError(f"{path}: has {present}; expected CSV with the header case,patient and a line per case")
    table: dict[str, str] = {}
    for line in lines:
        case, patient = ((line[column] or "").strip() for column in COLUMNS)
        if patient and table.setdefault(case, patient) != patient:
            raise InputError(f"{path}: {case} is of {table[case]} and of {patient}; expected one patient per case")
    missing = sorted(name for name in names if name not in table)
    if missing:
        more = f" and {len(missing) - MAX_LISTED} more" if len(missing) > MAX_LISTED else ""
        hint = did_you_mean(missing[0], table)
        raise InputError(
            f"{path}: no patient for {', '.join(missing[:MAX_LISTED])}{more}{hint}; add a line CASE,PATIENT for each"
        )
    return {name: table[name] for name in names}


def torn_patients(split: Split, patients: Mapping[str, str]) -> str:
    """Return the patients with cases in several parts of a split, as text with the cases and parts; "" if none is.

    patients: of each case of the split, by name.
    """
    places: defaultdict[str, dict[str, list[str]]] = defaultdict(dict)
    for part in PARTS:
        for name in getattr(split, part):
            places[patients[name]].setdefault(part, []).append(name)
    torn = {patient: parts for patient, parts in places.items() if len(parts) > 1}
    shown = []
    for patient, parts in sorted(torn.items())[:MAX_LISTED]:
        cases = ", ".join(f"{part}: {' '.join(names)}" for part, names in parts.items())
        shown.append(f"{patient} ({cases})")
    return "; ".join(shown) + (f"; and {len(torn) - MAX_LISTED} more" if len(torn) > MAX_LISTED else "")
