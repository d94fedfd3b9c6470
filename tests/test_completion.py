"""Shell completion, by the protocol that bash speaks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer._completion_classes import BashComplete

from tune.cli import app

ROOT = Path(__file__).parents[1]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with two sweeps, one of them below another folder, and a file of a search space."""
    for run in ("run one", "runs/two"):
        (tmp_path / run).mkdir(parents=True)
        (tmp_path / run / "study.yaml").touch()
    (tmp_path / "other").mkdir()
    (tmp_path / "mine.yaml").touch()
    return tmp_path


def run(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Voxtune, called by this name, with variables of the environment."""
    entry = f"import sys; sys.argv = ['voxtune', *{words}]; from tune.__main__ import main; main()"
    variables = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(
        [sys.executable, "-X", "importtime", "-c", entry], env=variables, cwd=folder, capture_output=True, text=True
    )


def test_bash_gets_an_answer_without_a_slow_import(folder: Path) -> None:
    line = "voxtune status ru"
    done = run(folder, _VOXTUNE_COMPLETE="complete_bash", COMP_WORDS=line, COMP_CWORD="2")
    assert done.stdout.split("\n")[0] == "run one"
    imported = {row.rpartition("|")[2].strip() for row in done.stderr.splitlines()}
    assert "tune.cli" in imported
    assert not imported & {"torch", "ray", "scipy", "pandas", "plotly"}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("voxtune la", {"launch"}),
        ("voxtune export --t", {"--to"}),
        ("voxtune export --to ", {"mlflow", "wandb"}),
        (
            "voxtune check ",
            {"brats", "brats_long", "demo", "finetune", "quick", "mine.yaml", "other/", "run one/", "runs/"},
        ),
        ("voxtune launch de", {"demo"}),
        ("voxtune status ru", {"run one"}),
        ("voxtune status runs/", {"runs/two"}),
        ("voxtune best o", {"other/"}),
        ("voxtune best nothing/here", set()),
    ],
)
def test_the_shell_is_offered_verbs_options_spaces_and_sweeps(
    folder: Path, line: str, expected: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    _, *words, incomplete = line.split(" ")
    completer = BashComplete(typer.main.get_command(app), {}, "voxtune", "_VOXTUNE_COMPLETE")
    assert {item.value for item in completer.get_completions(words, incomplete)} == expected


def test_the_script_of_a_shell_calls_voxtune(folder: Path) -> None:
    done = run(folder, "--show-completion", "zsh", _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert "_VOXTUNE_COMPLETE" in done.stdout
