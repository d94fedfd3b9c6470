"""What the values of seg files mean: a convention per year and task of BraTS, or a user's own.

Inside voxtune a label map has 0, 1 (TC without ET), 2 (WT without TC) and 4 (ET), whatever its file has.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from trainable.cases.case_files import NAMES_2021, Case, CaseError
from trainable.core.brats import REGIONS, Labels
from trainable.core.errors import InputError
from trainable.core.option_errors import did_you_mean

LABEL_ROUNDING = 0.02  # how far a label in a file may be from a whole number

PlainConvention = dict[str, Any]  # as JSON and checkpoints keep it, see LabelConvention.plain


@dataclass(frozen=True)
class LabelConvention:
    """Which values of a seg file make each region. Each region has values that the next smaller one lacks.

    Attributes:
        name: one of CONVENTIONS, or the name of a user's file.
        wt, tc, et: values from 1 to 255 of WT, TC and ET; those of ET are among those of TC, and those among WT's.
        background: values other than 0 that are no tumour, such as a resection cavity.
    """

    name: str
    wt: tuple[int, ...]
    tc: tuple[int, ...]
    et: tuple[int, ...]
    background: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"{self.name} (ET {' or '.join(map(str, self.et))})"

    @property
    def values(self) -> list[int]:
        """All values that a seg may have, sorted."""
        return sorted({0, *self.wt, *self.background})

    @property
    def variants(self) -> tuple[LabelConvention, ...]:
        """This convention and those that public copies of its cases have: ET is also 3 under the names of 2021."""
        return (LABELS_2021, LABELS_2021_ET3) if self in (LABELS_2021, LABELS_2021_ET3) else (self,)

    def with_et(self, value: int | None) -> LabelConvention:
        """Return the variant in which ET has this value; None, for a case without ET: this one."""
        return self if value is None else next(variant for variant in self.variants if value in variant.et)

    def contradicts(self, other: LabelConvention) -> bool:
        """Return whether a value has one meaning in this convention, or a variant of it, and another in the other's."""
        return any(
            one.to_canonical(shared).tolist() != two.to_canonical(shared).tolist()
            for one in self.variants
            for two in other.variants
            if len(shared := np.intersect1d(one.values, two.values))
        )

    def to_canonical(self, values: NDArray[Any]) -> Labels:
        """Return the labels 0, 1, 2, 4, uint8, of the values of a seg, which must be among `self.values`."""
        table = np.zeros(256, np.uint8)
        for canonical, region in ((2, self.wt), (1, self.tc), (4, self.et)):
            table[list(region)] = canonical
        label: Labels = values.astype(np.uint8)
        return label if all(table[value] == value for value in self.values) else table[label]

    def from_canonical(self, label: Labels) -> Labels:
        """Return the values, uint8, that a seg of this convention has for labels 0, 1, 2, 4.

        Of several values for one label it is the first, in the order of `wt` and `tc`.
        """
        table = np.zeros(5, np.uint8)
        table[1] = next(value for value in self.tc if value not in self.et)
        table[2] = next(value for value in self.wt if value not in self.tc)
        table[4] = self.et[0]
        written: Labels = table[label]
        return written

    def plain(self) -> PlainConvention:
        """Return this convention as plain values for JSON and checkpoints."""
        regions = {"WT": self.wt, "TC": self.tc, "ET": self.et, "background": self.background}
        return {"name": self.name, **{region: list(values) for region, values in regions.items()}}


LABELS_2021 = LabelConvention("2021", wt=(1, 2, 4), tc=(1, 4), et=(4,))
LABELS_2021_ET3 = LabelConvention("2021", wt=(1, 2, 3), tc=(1, 3), et=(3,))
LABELS_2023 = LabelConvention("2023", wt=(1, 2, 3), tc=(1, 3), et=(3,))
LABELS_PED2024 = LabelConvention("ped2024", wt=(1, 2, 3, 4), tc=(1, 2, 3), et=(1,))
LABELS_GLI2024 = LabelConvention("gli2024", wt=(1, 2, 3), tc=(1, 3), et=(3,), background=(4,))
CONVENTIONS = {labels.name: labels for labels in (LABELS_2021, LABELS_2023, LABELS_PED2024, LABELS_GLI2024)}
CHOICES = (
    "--labels 2021 (1 necrosis, 2 oedema, 4 ET), 2023 (3 ET), ped2024 (1 ET, 2 and 3 core, 4 oedema), gli2024 (after "
    "treatment: 3 ET, 4 resection cavity) or a YAML FILE (in a sweep --set train.labels=...)"
)
EXAMPLE = "{WT: [1, 2, 3], TC: [1, 3], ET: [3], background: [4]}"


def from_plain(plain: Mapping[str, Any]) -> LabelConvention:
    """Return the convention of which `plain` made these values."""
    wt, tc, et, background = (tuple(plain[key]) for key in (*REGIONS, "background"))
    return LabelConvention(plain["name"], wt, tc, et, background)


def labels_of_checkpoint(state: Mapping[str, Any]) -> LabelConvention:
    """Return the convention of the cases that a checkpoint was trained on; 2021 if older code wrote it."""
    return from_plain(state["labels"]) if "labels" in state else LABELS_2021


def find_labels(wanted: str | Path) -> LabelConvention:
    """Return the convention of a name in CONVENTIONS, or the one that a file defines.

    Raises:
        InputError: for a file that is missing, cannot be read or is no convention, see `parse_labels`.
    """
    if str(wanted) in CONVENTIONS:
        return CONVENTIONS[str(wanted)]
    path = Path(wanted)
    if not path.is_file():
        raise InputError(
            f"--labels {path}: no such file{did_you_mean(path.name, CONVENTIONS)}; expected {CHOICES}: {EXAMPLE}"
        )
    try:
        text = path.read_text()
        content, node = yaml.safe_load(text), yaml.compose(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path}: cannot be read as YAML ({error}); expected {EXAMPLE}") from None
    keys = [key.value for key, _ in node.value] if isinstance(node, yaml.MappingNode) else []
    try:
        if repeated := sorted({key for key in keys if keys.count(key) > 1}):
            raise ValueError(f"{repeated[0]} is given twice")
        return parse_labels(content, path.name)
    except ValueError as error:
        raise InputError(f"{path}: {error}; expected {EXAMPLE}, say") from None


def parse_labels(content: Any, name: str) -> LabelConvention:
    """Return the convention that a mapping {WT: [..], TC: [..], ET: [..], background: [..]} defines.

    If one of CONVENTIONS has the same values, it is that one.

    Raises:
        ValueError: saying what is wrong, for another key or a missing one, values that are no whole numbers from 1 to
            255 or come twice, or regions that are not nested or equal.
    """
    if not isinstance(content, dict):
        raise ValueError("is no mapping")
    missing = [key for key in REGIONS if key not in content]
    unknown = [str(key) for key in content if key not in (*REGIONS, "background")]
    if missing or unknown:
        raise ValueError(f"{missing[0]} is missing" if missing else f"{unknown[0]} is unknown")
    wt, tc, et = (_values(content[region], region) for region in REGIONS)
    background = _values(content.get("background", []), "background")
    for inner, inside, outer, around in (("ET", et, "TC", tc), ("TC", tc, "WT", wt)):
        if strange := [value for value in inside if value not in around]:
            raise ValueError(f"{inner} has {strange[0]} and {outer} has not, but {inner} is part of {outer}")
        if not inside or len(inside) == len(around):
            raise ValueError(
                f"{inner} is {list(inside)} and {outer} {list(around)}; {outer} needs a value that {inner} lacks, and "
                f"{inner} one at least, to write each in a prediction"
            )
    if both := [value for value in background if value in wt]:
        raise ValueError(f"{both[0]} is in background and in WT")
    parsed = LabelConvention(name, wt, tc, et, background)
    return next((known for known in CONVENTIONS.values() if replace(parsed, name=known.name) == known), parsed)


def _values(content: Any, key: str) -> tuple[int, ...]:
    """Return a list of values as a tuple; ValueError unless they are whole numbers from 1 to 255, each once."""
    if not isinstance(content, list):
        raise ValueError(f"{key} is {content!r}; it must be a list of values")
    for value in content:
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 255:
            raise ValueError(f"{key} has {value!r}; values are whole numbers from 1 to 255, and 0 is no tumour")
        if content.count(value) > 1:
            raise ValueError(f"{key} has {value} twice")
    return tuple(content)


def guess_labels(case: Case) -> LabelConvention | None:
    """Return the convention that the names of a case's files tell; None where that is not certain.

    Files named as in 2021 have its labels. Of those named as in 2023, the case's name must also be one of its tasks
    whose labels have not changed since. Time points from 100 on of BraTS-GLI are the scans after treatment of 2024.
    BraTS-PED has had other labels since 2024 under the same names.
    """
    name = case.name.lower()
    if case.naming == NAMES_2021:
        return None if re.match(r"brats-ped-|brats-gli-\d+-[1-9]\d\d$", name) else LABELS_2021
    if re.fullmatch(r"brats-(gli-\d+-0\d\d|(met|ssa|men)-\d+-\d+)", name):
        return LABELS_2023
    return LABELS_GLI2024 if re.fullmatch(r"brats-gli-\d+-1\d\d", name) else None


def choose_labels(cases: Sequence[Case], wanted: str | Path | None) -> LabelConvention:
    """Return the one convention of a folder's cases: the wanted one, or by None the one that all their names tell.

    Raises:
        InputError: if the names of a case do not tell it, or tell two; the message has an example and all choices. Also
            for a wanted file that is no convention.
    """
    if wanted is not None:
        return find_labels(wanted)
    guesses: dict[LabelConvention | None, list[str]] = {}
    for case in cases:
        guesses.setdefault(guess_labels(case), []).append(case.name)
    if unsure := guesses.get(None):
        raise InputError(f"{len(unsure)} of {len(cases)} cases, such as {unsure[0]}: {_unsure(unsure[0])}")
    if len(guesses) > 1:
        found = ", ".join(f"{labels} by the name of {names[0]}" for labels, names in guesses.items())
        raise InputError(
            f"the cases have several kinds of labels: {found}; take folders apart, or choose one: {CHOICES}"
        )
    return next(iter(guesses), None) or LABELS_2021


def labels_of_case(case: Case) -> LabelConvention:
    """Return what `guess_labels` does.

    Raises:
        CaseError: where that is not certain; the message has all choices.
    """
    if (labels := guess_labels(case)) is None:
        raise CaseError(f"{case.name}: {_unsure(case.name)}")
    return labels


def _unsure(name: str) -> str:
    """Return that the labels of a case are not certain, and what to do."""
    why = ", which differ between 2023 and 2024" if name.lower().startswith("brats-ped-") else ""
    return f"the names do not tell the meaning of the labels in seg{why}; choose it: {CHOICES}"


def labels_written(used: Iterable[LabelConvention]) -> str:
    """Return a line on the conventions of the predictions that were written, one item of `used` per case."""
    counts = Counter(used)
    return "labels written: " + ", ".join(
        f"{labels} in {count} cases" if len(counts) > 1 else str(labels) for labels, count in counts.items()
    )


def read_labels(case: Case, path: Path, voxels: NDArray[Any], labels: LabelConvention) -> tuple[Labels, int | None]:
    """Return the labels 0, 1, 2, 4 of a seg's voxels, and the value that ET has in it, None if it has no ET.

    In the convention 2021, 3 without any 4 is ET, as in public copies of its cases.

    Raises:
        CaseError: for values that are not whole, or not in the convention; the message has all choices.
    """
    flat = voxels.ravel(order="K")
    inside = flat[flat != 0]  # a few percent; sorting all voxels would take long
    values = np.unique(inside if len(inside) == len(flat) else np.append(inside, flat.dtype.type(0)))
    whole = np.isfinite(values) & (np.abs(np.rint(values) - values) <= LABEL_ROUNDING)
    if not whole.all():
        fractions = [float(value) for value in values[~whole]][:4]
        raise CaseError(f"{case.name}: {path.name} has non-integer labels such as {fractions}; expected whole numbers")
    values = np.unique(np.rint(values))
    fitting = [variant for variant in labels.variants if np.isin(values, variant.values).all()]
    if not fitting:
        present = [int(value) for value in values[:12]]
        raise CaseError(
            f"{case.name}: {path.name} has labels {present}; expected {labels.values}, as in {labels}; if they mean "
            f"something else choose it: {CHOICES}"
        )
    own = fitting[0]
    et = next((value for value in own.et if value in values), None)
    return own.to_canonical(np.rint(voxels) if voxels.dtype.kind == "f" else voxels), et
