"""RUN/live.json: what the trials of a sweep are doing at this moment. Rewritten by the driver every few seconds.

It lets `voxtune status --watch` show, from any machine that sees RUN, what the driver's own screen shows.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from trainable.core.files import atomic_write_text

Phase = Literal["starting", "training", "validating"]


@dataclass(frozen=True)
class Activity:
    """What a running trial is doing.

    number: of the trial. phase: what it does. epoch: the epoch in progress, from 1; 0 while starting. done, total:
    steps of that epoch, or cases while validating. patches_per_second: while training; None if not known yet.
    updated: when the trial said so, in seconds since 1970 (UTC). host, gpus: as in Event.
    """

    number: int
    phase: Phase
    epoch: int = 0
    done: int = 0
    total: int = 0
    patches_per_second: float | None = None
    updated: float = 0.0
    host: str = ""
    gpus: tuple[int, ...] = ()


@dataclass(frozen=True)
class LiveState:
    """The state of a sweep that runs.

    time: when it was written, in seconds since 1970 (UTC). started: when this attempt began. host, pid: of the driver.
    slots: number of trials that can run at once; None if not known. activities: of the running trials.
    """

    time: float
    started: float
    host: str
    pid: int
    slots: int | None = None
    activities: tuple[Activity, ...] = ()


def write_live_state(path: Path, state: LiveState) -> None:
    """Write the file; a reader sees the old one or the new one, whole."""
    atomic_write_text(path, json.dumps(asdict(state)) + "\n", fsync=False)


def read_live_state(path: Path) -> LiveState | None:
    """Return the state that was written last, also of a sweep that has ended since; None without a readable file."""
    try:
        stored = json.loads(path.read_text())
        activities = tuple(Activity(**{**item, "gpus": tuple(item["gpus"])}) for item in stored["activities"])
        return LiveState(**{**stored, "activities": activities})
    except (OSError, ValueError, TypeError, KeyError):
        return None
