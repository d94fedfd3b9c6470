"""The command that trains, as messages print it: "voxtune train", or "python train.py" in a checkout."""

from __future__ import annotations

DEFAULT = "voxtune train"

_command = DEFAULT


def train_command() -> str:
    """Return the command that starts a training, for messages that ask the user to type it."""
    return _command


def set_train_command(command: str) -> None:
    """Set what train_command returns in this process; called by the program's entry point."""
    global _command
    _command = command
