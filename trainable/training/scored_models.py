"""Which models scores on record are of: noted when cases are scored, compared by whoever shows or keeps the scores."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainable.core.errors import InputError
from trainable.training.checkpoint import load_metadata, weights_hash


def identity_of(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a file of scores notes of a model, given its checkpoint's state: its epoch and its weights_hash."""
    return {"epoch": state.get("epoch"), "weights_hash": weights_hash(state)}


def are_of(content: Mapping[str, Any], models: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether scores are of these models, whatever their order.

    Args:
        content: of the file of scores; with "members" those are the models that were scored, else it is one itself.
            Written by an older version it has no weights_hash, and the epochs are compared; without these it is True.
        models: see identity_of.
    """
    scored = content.get("members", [content])
    for name in ("weights_hash", "epoch"):
        if all(name in one for one in scored):
            return Counter(one[name] for one in scored) == Counter(one[name] for one in models)
    return True


def identities(checkpoints: Sequence[Path]) -> list[dict[str, Any]] | None:
    """Return what tells the models in these files, see identity_of; None if one is missing or cannot be read."""
    try:
        return [identity_of(load_metadata(file)) for file in checkpoints]
    except (InputError, KeyError):
        return None


def has_scores_of(file: Path, checkpoints: Sequence[Path]) -> bool:
    """Return whether a JSON file of scores is there, and of the models in these checkpoints.

    It counts as theirs if a checkpoint is missing or cannot be read.

    Raises:
        InputError: if it is damaged.
    """
    if not file.exists():
        return False
    models = identities(checkpoints)
    try:
        return models is None or are_of(json.loads(file.read_text()), models)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{file}: damaged ({error!r}); restore or delete it") from None
