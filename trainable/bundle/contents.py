"""The files of a bundle, and voxtune.json, which has the hash of each and what is needed to score the model again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from trainable.core.errors import InputError
from trainable.core.files import atomic_write_text

RECORD = "voxtune.json"
RECORD_VERSION = 1
FOLDERS = ("configs", "models", "docs", "scripts")
METADATA, INFERENCE, LOGGING_CONF = "configs/metadata.json", "configs/inference.json", "configs/logging.conf"
SCRIPT, WEIGHTS = "models/model.ts", "models/model.pt"
CARD, LICENSE, DATA_LICENSE = "docs/README.md", "docs/license.txt", "docs/data_license.txt"
CASES = "docs/cases.csv"


def is_bundle(folder: Path) -> bool:
    """Return whether a folder is a bundle that voxtune has exported."""
    return (folder / RECORD).is_file()


def write_record(folder: Path, about: Mapping[str, Any]) -> None:
    """Write voxtune.json: `about`, and the hash of each file that the bundle has now."""
    files = {name: sha256_of(folder / name) for name in sorted(_files(folder))}
    content = {"version": RECORD_VERSION, **about, "files": files}
    atomic_write_text(folder / RECORD, json.dumps(content, indent=1) + "\n")


def read_record(folder: Path) -> dict[str, Any]:
    """Return the content of voxtune.json; InputError if it is damaged or of another version."""
    path = folder / RECORD
    try:
        content = json.loads(path.read_text())
        if content["version"] != RECORD_VERSION or not isinstance(content["files"], dict):
            raise ValueError(f"version {content['version']}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}: damaged or of another version ({error}); expected version {RECORD_VERSION}: export again"
        ) from None
    return dict(content)


def check_files(folder: Path) -> Iterator[str]:
    """Yield what differs from voxtune.json: files that are changed, missing or added to one of FOLDERS."""
    recorded: dict[str, str] = read_record(folder)["files"]
    for name, digest in recorded.items():
        if not (folder / name).is_file():
            yield f"{name} is missing"
        elif sha256_of(folder / name) != digest:
            yield f"{name} has changed since the export"
    yield from (f"{name} was added after the export" for name in sorted(_files(folder)) if name not in recorded)


def files_beside(folder: Path) -> Iterator[str]:
    """Yield each entry of a bundle's folder that no export writes, such as predictions in eval, sorted."""
    for name in sorted(path.name for path in folder.iterdir()):
        if name not in (RECORD, *FOLDERS):
            yield f"{name} is not of the bundle"


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _files(folder: Path) -> Iterator[str]:
    """Yield the path of each file in FOLDERS, relative to the bundle; compiled Python, which a run leaves, is none."""
    for name in FOLDERS:
        for path in (folder / name).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                yield path.relative_to(folder).as_posix()
