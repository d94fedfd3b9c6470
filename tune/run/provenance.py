"""What a launch records of its origin: versions, commit, data and split."""

from __future__ import annotations

import json
import platform
import subprocess
from pathlib import Path
from typing import Any

import yaml

from trainable.cases.grid import Spacing
from trainable.core.files import atomic_write_text
from trainable.core.package_version import version
from trainable.data.cache import CacheError, data_digest, read_contents, require_same
from trainable.data.prepare import Data
from trainable.training.training_dir import CHECKPOINT_FORMAT
from tune.run.run_dir import RunDir
from tune.spec.run_record import RunRecord

PACKAGES = ("voxtune", "torch", "ray", "optuna", "nibabel", "numpy")


def digest_of(data: Data) -> str:
    """Return a hash of the names and prepared contents of the cases in all parts of the split."""
    return data_digest(data.folder, data.split.names)


def save_contents(data: Data, path: Path) -> None:
    """Write the hash of each case's content as JSON, which load_contents reads."""
    atomic_write_text(path, json.dumps(data.contents, indent=1) + "\n")


def load_contents(path: Path) -> dict[str, str]:
    """Return what save_contents has written; {} if there is no such file, as in a run of an older version.

    Raises:
        CacheError: if it is damaged; all trainings of a run would meet that.
    """
    if not path.exists():
        return {}
    try:
        return dict[str, str](json.loads(path.read_text()))
    except (ValueError, TypeError):
        raise CacheError(
            f"{path} is damaged; restore it, or delete it: a resume makes it again if no case has changed"
        ) from None


def spacing_of_run(run_dir: Path) -> Spacing | None:
    """Return the voxel size in mm that a run notes in its study.yaml; None in one of an older version."""
    file = RunDir(run_dir).config
    record = yaml.safe_load(file.read_text()).get("record", {}) if file.exists() else {}
    return RunRecord.model_validate(record).voxel_size


def provenance(data: Data) -> dict[str, Any]:
    """Return the fields of RunRecord that make a sweep checkable later.

    They are the hashes of data and split, voxel size, skipped cases, commit, checkpoint format and versions.

    Raises:
        CacheError: if a case in the cache has changed since it was prepared.
    """
    require_same(read_contents(data.folder, data.split.names), data.contents)
    return {
        "split": data.split.digest(),
        "data": digest_of(data),
        "spacing": list(data.spacing),
        "skipped_cases": list(data.skipped),
        "commit": commit(),
        "format": CHECKPOINT_FORMAT,
        "versions": {name: version(name) for name in PACKAGES} | {"python": platform.python_version()},
    }


def commit() -> str:
    """Return the commit of the git checkout that has this code, with "+changes" if a tracked file has changed since.

    "none" if no checkout has this code (an installed wheel), or if git fails or is missing.
    """
    file = Path(__file__)

    def git(*words: str) -> str:
        command = ["git", "-C", str(file.parent), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", file.name)  # a wheel may be installed inside somebody's repository
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "-uno") else "")
    except (FileNotFoundError, subprocess.CalledProcessError):
        return "none"
