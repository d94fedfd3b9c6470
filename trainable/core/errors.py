"""The error of wrong input."""

from __future__ import annotations


class InputError(ValueError):
    """Input of the user that cannot be used; the message says what, where, what is allowed and what to do."""
