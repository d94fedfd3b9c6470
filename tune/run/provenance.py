"""What a run notes of where it came from."""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from trainable.data.cache import data_digest
from trainable.data.prepare import Data
from trainable.training import checkpoint

PACKAGES = ("voxtune", "torch", "ray", "optuna", "nibabel", "numpy")


def digest_of(data: Data) -> str:
    """The hash of the cases of all parts of the split."""
    return data_digest(data.folder, sorted({*data.split.train, *data.split.val, *data.split.test}))


def provenance(data: Data) -> dict[str, Any]:
    """What a sceptical reader asks for: versions, commit, data, split; and the format of the checkpoints."""
    return {
        "split": data.split.digest(),
        "data": digest_of(data),
        "skipped_cases": list(data.skipped),
        "commit": commit(),
        "format": checkpoint.FORMAT,
        "versions": {name: version(name) for name in PACKAGES} | {"python": platform.python_version()},
    }


def commit() -> str:
    """The git commit of this code, and whether it was changed since; "none" for an installed wheel or without git."""
    here = Path(__file__)

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(here.parent), *words], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)  # a wheel may lie in somebody's repository
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "-uno") else "")
    except (FileNotFoundError, subprocess.CalledProcessError):
        return "none"


def version(package: str) -> str:
    """The installed version of a package."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
