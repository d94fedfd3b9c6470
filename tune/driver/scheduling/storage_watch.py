"""Notices that the folder of a sweep's checkpoints was deleted while the sweep runs."""

from __future__ import annotations

from pathlib import Path

from trainable.core.storage import is_uri

MARKER = ".in_use"


class StorageWatch:
    """Whether what an attempt writes its checkpoints into is still there.

    Ray makes the folders again that it writes into, so a file is looked for that only `begin` writes. A storage that is
    a URI is not watched.

    storage: the run's.
    """

    def __init__(self, storage: str) -> None:
        self.storage = storage
        self.marker: Path | None = None

    def begin(self, attempt: str) -> None:
        """Make the folder of an attempt below the storage, with the marker in it."""
        if not is_uri(self.storage):
            self.marker = Path(self.storage, attempt, MARKER)
            self.marker.parent.mkdir(parents=True, exist_ok=True)
            self.marker.touch()

    def lost(self) -> str:
        """Return what was deleted, in words; "" if nothing was."""
        if self.marker is None or self.marker.exists():
            return ""
        return f"the loss of {self.storage}: the checkpoints in it were deleted while the sweep ran"
