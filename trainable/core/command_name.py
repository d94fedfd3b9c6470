"""The command that trains, as messages print it: "voxtune train", or "python train.py" in a checkout."""

from __future__ import annotations

DEFAULT = "voxtune train"

_command = DEFAULT


def train_command() -> str:
    """Return the command to print in messages that tell the user what to type."""
    return _command


def set_train_command(command: str) -> None:
    """Set the command that this process was started with; called by the entry point."""
    global _command
    _command = command
