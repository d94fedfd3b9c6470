"""What is wrong with a machine, so that any training would meet it there."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager

from trainable.core.errors import InputError
from trainable.core.files import FULL_DISK_ERRNOS
from trainable.data.cache import CacheError


class NodeTroubleError(InputError):
    """What is wrong with a machine, by its name, so that other trainings would meet it there too."""


@contextmanager
def trouble_of_this_node() -> Iterator[None]:
    """Raise NodeTroubleError for a CacheError or a full disk in this context."""
    try:
        yield
    except (CacheError, OSError) as error:
        if not (trouble := node_trouble(error)):
            raise
        raise NodeTroubleError(trouble) from None


def node_trouble(error: Exception) -> str:
    """Return what is wrong with this or another machine, by its name, if that is what an error says; else ""."""
    if isinstance(error, NodeTroubleError):
        return str(error)
    if isinstance(error, CacheError):
        return f"the cache on {platform.node()}: {error}"
    if isinstance(error, OSError) and error.errno in FULL_DISK_ERRNOS:
        return f"a full disk on {platform.node()}: {error}"
    return ""
