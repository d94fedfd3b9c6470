"""The journal file: whole lines, appended atomically."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from optuna.storages.journal import JournalFileBackend

from trainable.core.errors import InputError
from trainable.core.files import errors_name
from trainable.core.logger import logger

JOURNAL = "journal.log"
# Optuna's op codes of an entry.
CREATE_STUDY, DELETE_STUDY, SET_STUDY_ATTR, CREATE_TRIAL = 0, 1, 3, 4
SET_PARAM, SET_STATE, SET_INTERMEDIATE_VALUE, SET_USER_ATTR, SET_SYSTEM_ATTR = 5, 6, 7, 8, 9


def complete_lines(data: bytes) -> bytes:
    """Return a journal up to its last newline: a crash, or an entry being written, may leave half a line."""
    return data[: data.rfind(b"\n") + 1]


def truncate_partial_line(path: Path) -> int:
    """Cut a journal back to its complete lines; return how many bytes were cut, 0 if it ends with a newline."""
    data = path.read_bytes()
    complete = len(complete_lines(data))
    if complete < len(data):
        os.truncate(path, complete)
    return len(data) - complete


def check_journal(path: Path) -> None:
    """Check that each line is JSON; Optuna itself ignores a last line that is not.

    Raises:
        InputError: a line is damaged.
    """
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            json.loads(line)
        except ValueError:
            raise InputError(f"{path}:{number} is damaged; restore the file, it holds the sweep's trials") from None


def mend_journal(path: Path) -> None:
    """Cut half a line that a crash has left off the end of a journal, with a warning; none is needed to be there yet.

    Raises: as check_journal.
    """
    if path.exists():
        if cut := truncate_partial_line(path):
            logger.warning(f"{path}: cut half a line ({cut} bytes) that a crash left")
        check_journal(path)


class AtomicJournalBackend(JournalFileBackend):
    """A journal file for a single writer that holds the run's lock; a full disk leaves no partial entry."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self.path = path

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append all of these entries; flush them to the disk, unless all are params, scores or notes on the study.

        Raises:
            OSError: the entries cannot be written (a full disk); none of them is in the file then.
        """
        before = self.path.stat().st_size
        try:
            with errors_name(self.path), self.path.open("ab") as file:
                file.writelines(json.dumps(log, separators=(",", ":")).encode() + b"\n" for log in logs)
                file.flush()
                # A param needs no fsync: nothing else of its trial is in the journal yet if the machine crashes.
                # A score is followed by its report's progress, and a note is written again when the sweep is resumed.
                if any(log["op_code"] not in (SET_PARAM, SET_INTERMEDIATE_VALUE, SET_STUDY_ATTR) for log in logs):
                    os.fsync(file.fileno())
        except OSError:
            os.truncate(self.path, before)
            raise
