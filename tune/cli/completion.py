"""What the shell offers behind a verb: shipped search spaces, and the folders of sweeps."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path


def complete_space(incomplete: str) -> list[str]:
    """Return the shipped search spaces, and the YAML files and folders on disk, that begin with this text."""
    files = sorted(entry.name for entry in resources.files("search_spaces").iterdir())
    shipped = [name.removesuffix(".yaml") for name in files if name.endswith(".yaml")]
    return [name for name in shipped if name.startswith(incomplete)] + [
        path for path in paths_from(incomplete) if path.endswith((".yaml", ".yml", "/"))
    ]


def complete_run(incomplete: str) -> list[str]:
    """Return the folders of sweeps whose path begins with this text; other folders, to go on in, if there is none."""
    folders = [path for path in paths_from(incomplete) if path.endswith("/")]
    runs = [path.rstrip("/") for path in folders if (Path(path).expanduser() / "study.yaml").exists()]
    return runs or folders


def paths_from(incomplete: str) -> list[str]:
    """Return the paths that begin with this text, as it spells them, folders with a slash at the end."""
    written, _, start = incomplete.rpartition("/")
    written += "/" * ("/" in incomplete)
    try:
        entries = sorted(os.scandir(Path(written or ".").expanduser()), key=lambda entry: entry.name)
    except OSError:
        return []
    shown = [entry for entry in entries if entry.name.startswith(start) and (start or not entry.name.startswith("."))]
    return [f"{written}{entry.name}{'/' * entry.is_dir()}" for entry in shown]
