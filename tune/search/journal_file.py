"""The journal file: whole lines, appended atomically."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from optuna.storages.journal import JournalFileBackend

from trainable.core.errors import InputError

JOURNAL = "journal.log"
CREATE_TRIAL, SET_PARAM, SET_STATE, SET_USER_ATTR = 4, 5, 6, 8  # what an entry of it does


def complete_lines(data: bytes) -> bytes:
    """A journal up to its last newline: a crash, or an entry that is on its way, may leave half a line."""
    return data[: data.rfind(b"\n") + 1]


def truncate_partial_line(path: Path) -> int:
    """Cut a journal back to its whole lines; returns the bytes cut."""
    data = path.read_bytes()
    whole = len(complete_lines(data))
    if whole < len(data):
        os.truncate(path, whole)
    return len(data) - whole


def check_journal(path: Path) -> None:
    """Raise InputError for a journal with a line that is no JSON, of which Optuna passes over the last."""
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            json.loads(line)
        except ValueError:
            raise InputError(f"{path}:{number} is damaged; restore the file, it holds the sweep's trials") from None


class AtomicJournalBackend(JournalFileBackend):
    """A journal file that one process writes, which holds the whole run, and that a full disk leaves whole."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self.path = path

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append all of these entries, or none and OSError."""
        before = self.path.stat().st_size
        try:
            with self.path.open("ab") as file:
                file.writelines(json.dumps(log, separators=(",", ":")).encode() + b"\n" for log in logs)
                file.flush()
                # of a trial whose params a crash of the machine takes nothing else is on record yet
                if any(log["op_code"] != SET_PARAM for log in logs):
                    os.fsync(file.fileno())
        except OSError:
            os.truncate(self.path, before)
            raise
