"""What is wrong with the arguments of a launch, as far as it can be told at once: before Ray and torch are imported."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from trainable.core.errors import InputError
from trainable.core.storage import is_there, place_of_data
from tune.run.run_dir import RunDir, resume_command
from tune.spec.sweep_config import SweepConfig


def check_arguments(config: SweepConfig, run_dir: Path) -> None:
    """Raise InputError if the folder of a new sweep is taken, or that of the cases is missing or a URI with keys."""
    ensure_new(run_dir)
    cases = config.fixed("data_dir")
    if cases is not None and not is_there(place_of_data(cases)):
        raise InputError(f"--data {cases}: no such folder")


def ensure_new(run_dir: Path) -> None:
    """Raise InputError if a folder has a study.yaml, a sub-folder, or a split.json without a journal.

    It may have other files, such as a log, and the journal and split of a launch that failed before its first trial.
    """
    paths = RunDir(run_dir)
    if paths.config.exists():
        raise InputError(
            f"{run_dir} holds a sweep already; go on with `{resume_command(run_dir)}` or take another --out"
        )
    other = sorted(path.name for path in run_dir.glob("*") if path.is_dir())
    other += [paths.split.name] * (paths.split.exists() and not paths.journal.exists())
    if other:
        raise InputError(f"{run_dir} holds {other[0]} already, which is of something else; take another --out")


def check_notify(url: str | None) -> None:
    """Raise InputError if --notify is no URL of http or https; its text, which may carry a secret, is not shown."""
    if url is not None and not is_web_address(url):
        raise InputError("--notify: expected a URL such as https://HOST/PATH, of http or https")


def is_web_address(url: str) -> bool:
    """Return whether a text is a URL of http or https with a host."""
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:  # a port that is no number
        return False
