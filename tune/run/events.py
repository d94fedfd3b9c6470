"""RUN/events.jsonl: what happened in a sweep and when, one line per event. The driver writes it for people and charts.

The journal stays the source of truth on trials: nothing is decided by events, and a run without the file is whole.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path

BEGINNING = '{"time": '  # of each line


class EventKind(StrEnum):
    """What happened."""

    SWEEP_STARTED = "sweep_started"  # an attempt: a launch or a resume
    SWEEP_ENDED = "sweep_ended"
    TRIAL_STARTED = "trial_started"  # or goes on, in a process on `host` with `gpus`
    TRIAL_RETRIED = "trial_retried"  # after an error: the next is TRIAL_STARTED
    TRIAL_WENT_BACK = "trial_went_back"  # to an earlier checkpoint, or to the start, as the newest is damaged
    TRIAL_WAITS = "trial_waits"  # for resources that others hold: an event of the sweep
    WAIT_ENDED = "wait_ended"  # no trial waits any more
    TRIAL_STOPPED = "trial_stopped"  # by early stopping
    TRIAL_KEPT = "trial_kept"  # early stopping would have stopped it
    TRIAL_PAUSED = "trial_paused"  # at a rung, until all trials are there
    TRIAL_PROMOTED = "trial_promoted"  # it is to go on from the rung
    TRIAL_ENDED = "trial_ended"  # complete, out of memory, failed, ...; also after TRIAL_STOPPED
    NEW_BEST = "new_best"


@dataclass(frozen=True)
class Event:
    """One event.

    time: seconds since 1970 (UTC). trial: its number, None for an event of the sweep. text: what happened, as people
    read it, without the trial's number: "stopped at epoch 4: 0.170, 0.448 was needed". host, gpus: where a trial has
    started, the machine's name and the indices of its GPUs there; "" and () otherwise, and no GPUs on a CPU. status:
    how a trial ended, as TrialResult.status; "" for other events.
    """

    time: float
    kind: EventKind
    text: str
    trial: int | None = None
    host: str = ""
    gpus: tuple[int, ...] = ()
    status: str = ""


def append_event(path: Path, event: Event) -> None:
    """Append an event as a line of JSON. Not flushed to the disk: a machine that loses power may lose the last ones.

    Raises:
        OSError: it cannot be written, as on a full disk.
    """
    values = ((field, getattr(event, field.name)) for field in fields(event))
    line = json.dumps({field.name: value for field, value in values if value != field.default})
    with path.open("ab+") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
        cut = file.read(1) not in (b"", b"\n")  # by a crash or a full disk, within the last line
        file.write(b"\n" * cut + line.encode() + b"\n")


def read_events(path: Path) -> list[Event]:
    """Return the events in their order, without lines that cannot be read, as after a crash; [] without the file."""
    return list(_events(path.read_text(errors="replace"))) if path.exists() else []


def is_damaged(path: Path) -> bool:
    """Return whether a line is neither an event nor the beginning of one, which a crash or a full disk leaves behind.

    Kinds of another version count as events.
    """
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    return any(not _is_cut(line) and not _is_json(line) for line in lines)


def has_ended(events: Sequence[Event]) -> bool:
    """Return whether the last attempt has ended as far as its driver could note it; False before the first one."""
    kinds = [event.kind for event in events if event.kind in (EventKind.SWEEP_STARTED, EventKind.SWEEP_ENDED)]
    return bool(kinds) and kinds[-1] == EventKind.SWEEP_ENDED


def end_times(events: Sequence[Event]) -> dict[int | None, float]:
    """Return when each trial ended last, by number."""
    return {event.trial: event.time for event in events if event.kind == EventKind.TRIAL_ENDED}


def waits_for(events: Sequence[Event]) -> str:
    """Return what the trials wait for now and who holds it, as the driver noted it last; "" if they do not wait."""
    about_waiting = (EventKind.TRIAL_WAITS, EventKind.WAIT_ENDED, EventKind.SWEEP_STARTED, EventKind.SWEEP_ENDED)
    last = next((event for event in reversed(events) if event.kind in about_waiting), None)
    return last.text if last is not None and last.kind == EventKind.TRIAL_WAITS else ""


def _is_cut(line: str) -> bool:
    return BEGINNING.startswith(line[: len(BEGINNING)]) and not line.endswith("}")


def _is_json(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _events(text: str) -> Iterator[Event]:
    for line in text.splitlines():
        try:
            stored = json.loads(line)
            yield Event(**{**stored, "kind": EventKind(stored["kind"]), "gpus": tuple(stored.get("gpus", ()))})
        except (ValueError, TypeError, KeyError):  # half a line, or a kind of another version
            continue
