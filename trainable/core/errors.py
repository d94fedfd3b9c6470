"""The error of wrong input."""

from __future__ import annotations


class InputError(ValueError):
    """What the user gave cannot be used; the message says what, where, what is allowed and what to do."""
