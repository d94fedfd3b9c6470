"""The installed versions of packages."""

from __future__ import annotations

from importlib import metadata


def version(package: str) -> str:
    """Return the installed version of a package; "unknown" if it has no metadata, as a checkout that is no package."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"
