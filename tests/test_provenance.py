"""The commit that a run notes."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from pathlib import Path

import pytest

from tune.run import provenance


def git(folder: Path, *words: str) -> str:
    asked = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b", *words]
    return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()


def commit_of(file: Path) -> str:
    """commit(), of a copy of its module."""
    file.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(provenance.__file__, file)
    spec = importlib.util.spec_from_file_location("copied", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return str(module.commit())


def test_the_commit_is_of_this_code_and_of_no_repository_around_a_wheel(tmp_path: Path) -> None:
    installed, own = tmp_path / ".venv" / "tune" / "provenance.py", tmp_path / "tune" / "provenance.py"
    assert commit_of(own) == "none"
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "tune/provenance.py")
    git(tmp_path, "commit", "-q", "-m", "code")
    head = git(tmp_path, "rev-parse", "HEAD")
    assert commit_of(own) == head
    assert commit_of(installed) == "none"
    (tmp_path / "tune" / "other.py").touch()
    git(tmp_path, "add", "tune/other.py")
    assert commit_of(own) == f"{head}+changes"


def test_without_git_there_is_no_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert provenance.commit() == "none"
