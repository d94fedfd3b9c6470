"""How far a trial has come, as its attribute "progress" in the journal says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self


@dataclass(frozen=True)
class BestEpoch:
    """The best validated epoch of a trial: its score, and the Dice of each region."""

    epoch: int
    score: float
    dice: dict[str, float]


@dataclass(frozen=True)
class Progress:
    """How far a trial has come.

    epoch: the last reported one. seconds: training time so far, over all attempts. end_reason: why it ended by itself,
    a value of EndReason; "" while it runs. checkpoint: path of the newest one below the run's storage. best: None until
    an epoch is validated. device: where it trained.
    """

    epoch: int = 0
    seconds: float = 0.0
    end_reason: str = ""
    checkpoint: str | None = None
    best: BestEpoch | None = None
    device: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)  # keys of other versions, kept as they are

    @classmethod
    def from_attrs(cls, attrs: Mapping[str, Any]) -> Self:
        """Read a trial's user attributes in the journal."""
        stored = dict(attrs.get("progress", {}))
        best = stored.pop("best", {})
        names = ("epoch", "seconds", "end_reason", "checkpoint", "device")
        known = {name: stored.pop(name) for name in names if name in stored}
        return cls(**known, best=BestEpoch(**best) if best else None, extra=stored)

    def to_attrs(self) -> dict[str, Any]:
        """The value of the attribute "progress"; from_attrs reads it back."""
        stored = asdict(self)
        return {**stored.pop("extra"), **stored, "best": stored["best"] or {}}
