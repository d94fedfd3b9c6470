"""Which cases a model has seen before: those that its weights were trained on, and those that selected them.

A checkpoint has both, by scan_hash, so that a case is recognised under any name:

    "cases"  {part: {name: content_of the case}} of its own training
    "seen"   History of the weights that this training started from
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from trainable.core.config import TrainConfig
from trainable.core.errors import InputError
from trainable.core.logger import logger
from trainable.data.cache import scan_of
from trainable.data.prepare import Data
from trainable.data.split import PARTS
from trainable.training.checkpoint import find_checkpoint, load_metadata
from trainable.training.training_dir import BEST

NEW, UNKNOWN = "new", "unknown"  # parts of cases that are in none
ALL_PARTS = (*PARTS, NEW, UNKNOWN)  # in the order of tables
MAX_LISTED = 10  # names in a message


@dataclass(frozen=True)
class History:
    """What some weights have seen.

    Attributes:
        trained: scan_hash of each case that they were trained on.
        selected: scan_hash of each case that they were selected by, as the best of several epochs.
        complete: False if they may have seen other cases too: a file without a record is among their origins.
    """

    trained: tuple[str, ...] = ()
    selected: tuple[str, ...] = ()
    complete: bool = True

    @classmethod
    def of_state(cls, state: Mapping[str, Any]) -> Self:
        """Return what the weights of a checkpoint have seen, in its own training and before."""
        before, cases = cls.before(state), state.get("cases")
        if cases is None:
            return cls(before.trained, before.selected, complete=False)
        own = {part: map(scan_of, cases[part].values()) for part in PARTS}
        return cls(
            tuple(sorted({*before.trained, *own["train"]})),
            tuple(sorted({*before.selected, *own["val"]})),
            before.complete,
        )

    @classmethod
    def before(cls, state: Mapping[str, Any]) -> Self:
        """Return what the weights had seen from which the training of a checkpoint started.

        That is nothing if it started from none; a checkpoint of an older version does not say.
        """
        seen = state.get("seen", {})
        return cls(
            tuple(seen.get("trained", ())), tuple(seen.get("selected", ())), seen.get("complete", "cases" in state)
        )

    def to_state(self) -> dict[str, Any]:
        """Return the value of "seen" in a checkpoint."""
        return {**asdict(self), "trained": list(self.trained), "selected": list(self.selected)}

    def seen_of(self, cases: Mapping[str, Mapping[str, str]]) -> dict[str, list[str]]:
        """Return the names of the val and test cases that were seen, by part; a part without such cases is left out.

        A val case counts if it was trained on, a test case also if the weights were selected by it.

        cases: content of each case by part and name.
        """
        seen = {"val": {*self.trained}, "test": {*self.trained, *self.selected}}
        found = {
            part: sorted(name for name, content in cases.get(part, {}).items() if scan_of(content) in scans)
            for part, scans in seen.items()
        }
        return {part: names for part, names in found.items() if names}


def cases_by_part(data: Data) -> dict[str, dict[str, str]]:
    """Return the value of "cases" in a checkpoint: the content of each case by part and name."""
    return {part: {name: data.contents[name] for name in getattr(data.split, part)} for part in PARTS}


def history_of_pretrained(config: TrainConfig, data: Data) -> History:
    """Return what the weights of the option `pretrained` have seen; an empty history without that option.

    A file without a record of its cases is named in a line.

    Raises:
        InputError: if they have seen val or test cases, and allow_seen_cases is not set; or for a file that cannot be
            used.
    """
    if config.pretrained is None:
        return History()
    path = find_checkpoint(config.pretrained, wanted=BEST)
    state = load_metadata(path)
    history = History.of_state(state)
    if not history.complete:
        logger.info(f"{path} does not say which cases it was trained on: val and test cases may be among them")
    seen = history.seen_of(cases_by_part(data))
    if seen and not config.allow_seen_cases:
        listing = "; ".join(f"{part}: {_listed(names)}" for part, names in seen.items())
        raise InputError(
            f"{path} was trained on, or selected by, cases that are to score it now, so that the scores would be too "
            f"good: {listing}; take other weights or another split_file, or say --allow_seen_cases"
        )
    return history


def _listed(names: Sequence[str]) -> str:
    """Return up to MAX_LISTED names, and how many more there are."""
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return ", ".join(names[:MAX_LISTED]) + more


def parts_of(state: Mapping[str, Any], scans: Mapping[str, str]) -> dict[str, str]:
    """Return what each case was to a checkpoint's model: train, val, test, new, or unknown if that is not on record.

    Cases that only the weights have seen from which its training started are train or val too.

    Args:
        state: the checkpoint's.
        scans: scan_hash of each case, by its name here.
    """
    before, cases = History.before(state), state.get("cases")
    rest = NEW if before.complete and cases is not None else UNKNOWN
    known: dict[str, str] = {**dict.fromkeys(before.selected, "val"), **dict.fromkeys(before.trained, "train")}
    for part in reversed(PARTS):
        known.update(dict.fromkeys(map(scan_of, (cases or {}).get(part, {}).values()), part))
    return {name: known.get(scan, rest) for name, scan in scans.items()}


def seen_before(state: Mapping[str, Any], part: str, scan: str) -> bool:
    """Return whether a val or test case was seen by the weights from which the training of a checkpoint started.

    Args:
        part: of the case, see parts_of.
        scan: its scan_hash.
    """
    return bool(History.before(state).seen_of({part: {"the case": scan}}))


def group_by_part(parts: Mapping[str, str], names: Iterable[str]) -> dict[str, list[str]]:
    """Return these cases by part, the parts in the order of ALL_PARTS; parts without a case are left out."""
    groups = {part: [name for name in names if parts[name] == part] for part in ALL_PARTS}
    return {part: group for part, group in groups.items() if group}
