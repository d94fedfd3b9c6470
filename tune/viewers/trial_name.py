"""A trial's name: its number and what its recipe has of its own, short enough for a list and safe as a file's name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MAX_LENGTH = 60  # TensorBoard's list of runs shows it in two lines
SILENT_WORDS = ("off", "auto", "none")  # values that say nothing without the option's name


def trial_name(number: int, values: Mapping[str, Any], default: Mapping[str, Any]) -> str:
    """Return such as "0003 adam lr=0.012 tversky no_augment".

    Args:
        values: the searched options of the trial.
        default: those of the default recipe; what is as there is left out.

    Returns:
        MAX_LENGTH characters at most; options that do not fit in are counted: "0003 adam lr=0.012 +4". A recipe
        without a difference is called "0000 default".
    """
    words = [word(name, value) for name, value in values.items() if default.get(name) != value] or ["default"]
    start = f"{number:04d}"
    for shown in range(len(words), 0, -1):
        left = [f"+{len(words) - shown}"] * (shown < len(words))
        if len(name := " ".join([start, *words[:shown], *left])) <= MAX_LENGTH:
            return name
    return start


def word(name: str, value: Any) -> str:
    """Return an option's value as a word that says which option it is of."""
    if isinstance(value, bool):
        return name if value else f"no_{name}"
    if isinstance(value, str) and value not in SILENT_WORDS:
        text = value
    elif isinstance(value, list | tuple):
        text = f"{name}={'x'.join(format(item, 'g') for item in value)}"
    else:
        text = f"{name}={value:.2g}" if isinstance(value, float) else f"{name}={value}"
    return re.sub(r"[^\w.=+-]", "_", text)


def named_folder(parent: Path, name: str) -> Path:
    """Return the folder below `parent` of the trial with this name: the one that its number has already, if any.

    A resumed sweep may have another default recipe, and with it other names.
    """
    number = name.partition(" ")[0]
    return next(parent.glob(f"{number} *"), parent / name)
