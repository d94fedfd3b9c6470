"""The verbs of voxtune as a user types them: help, version, `voxtune train`, and the page that documents them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from cli_page import PAGE, cli_page
from helpers import voxtune_here

import voxtune
from trainable.core.locks import lock_folder
from trainable.core.logger import init_logger, logger
from trainable.data.prepare import Data
from trainable.training import checkpoint
from tune.__main__ import read_words
from tune.cli import app
from tune.cli.command import PANELS
from tune.run.run_dir import resume_command

ROOT = Path(__file__).parent.parent
SMALL = (
    "--depth 3 --base_channels 4 --target_shape 16 16 16 --overlap 0 --num_workers 0 --device cpu --patches_per_epoch 4"
)
VERBS = list(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


def run_command(*words: object) -> subprocess.CompletedProcess[str]:
    """Run a command of Python in the checkout."""
    command = [sys.executable, *map(str, words)]
    environment = {**os.environ, "COLUMNS": "120"}
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment)


def test_each_verb_has_its_place_in_the_help() -> None:
    assert sorted(name for names in PANELS.values() for name in names) == sorted(VERBS)


def test_the_page_of_the_verbs_is_up_to_date() -> None:
    assert PAGE.read_text() == cli_page(), "run `make docs`"
    assert {f"## {verb}" for verb in VERBS} <= set(PAGE.read_text().splitlines())


@pytest.mark.parametrize("verb", sorted({*VERBS} - {"train"}))
def test_the_help_of_each_verb_shows_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        app([verb, "--help"])
    assert caught.value.code == 0
    assert f"Example: voxtune {verb}" in capsys.readouterr().out


def test_version() -> None:
    done = run_command("-m", "tune", "--version")
    assert (done.returncode, done.stdout) == (0, f"voxtune {voxtune.__version__}\n")


def test_voxtune_train_has_the_help_of_train_py(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    ours, theirs = voxtune_here("train", "--help"), run_command("train.py", "--help")
    assert ours.returncode == 0, ours.stderr
    assert "voxtune train --data_dir DIR" in ours.stdout
    flags = ours.stdout.partition("\noptions:\n")[2]
    assert flags
    assert flags == theirs.stdout.partition("\noptions:\n")[2]


def test_voxtune_train_trains_resumes_and_tests(phantoms: Path, prepared: Data, tmp_path: Path) -> None:
    """Options pass as they are written: several values, a negation, an equals sign."""
    words = (
        f"--data_dir {phantoms} --cache_dir={prepared.folder} --output_dir {tmp_path} --epochs 1 --no-residual {SMALL}"
    )
    done = run_command("-m", "tune", "train", *words.split())
    assert done.returncode == 0, done.stderr
    assert f"test it: voxtune train --resume {tmp_path}" in done.stdout
    again = voxtune_here("train", "--resume", tmp_path, "--epochs", 2)
    assert again.returncode == 0, again.stderr
    assert "goes on after epoch 1" in again.stdout
    assert checkpoint.load_checkpoint(tmp_path)["epoch"] == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--epoch", "3"], "error: unknown argument '--epoch' (did you mean --epochs?); see voxtune train --help"),
        (["--lr", "-1", "--data_dir", "x", "--output_dir", "y"], "lr"),
        (["--data_dir", "nowhere", "--output_dir", "y"], "nowhere"),
    ],
)
def test_wrong_input_of_voxtune_train_is_exit_code_2(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = voxtune_here("train", *words)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_ctrl_c_of_voxtune_train_is_that_of_train_py(phantoms: Path, prepared: Data, tmp_path: Path) -> None:
    words = f"--data_dir {phantoms} --cache_dir {prepared.folder} --output_dir {tmp_path} {SMALL} --epochs 900"
    command = [sys.executable, "-m", "tune", "train", *words.split()]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, cwd=ROOT
    )
    assert process.stdout is not None
    while not process.stdout.readline().startswith("epoch   2/900"):
        assert process.poll() is None
    os.killpg(process.pid, signal.SIGINT)
    output, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert f"go on with: voxtune train --resume {tmp_path}" in output
    assert "what was finished is kept" not in error


EARLY_CTRL_C = """
import os, runpy, signal, sys

class Interrupt:
    def find_spec(self, name, *_):
        if name == "typer":
            os.kill(os.getpid(), signal.SIGINT)

signal.signal(signal.SIGINT, signal.{handler})
sys.meta_path.insert(0, Interrupt())
sys.argv = ["voxtune", "check", "demo"]
runpy.run_module("tune", run_name="__main__")
"""


def test_ctrl_c_while_voxtune_imports_what_it_needs_leaves_no_traceback() -> None:
    done = run_command("-c", EARLY_CTRL_C.format(handler="default_int_handler"))
    assert (done.returncode, done.stderr) == (130, "\nstopped by SIGINT; what was finished is kept\n")


def test_a_ctrl_c_that_is_ignored_stays_ignored() -> None:
    """A shell ignores it for what a script starts with &."""
    done = run_command("-c", EARLY_CTRL_C.format(handler="SIG_IGN"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("ok\n")


def test_a_folder_in_a_command_is_quoted() -> None:
    assert resume_command(Path("/a run")) == "voxtune resume '/a run'"


def test_the_logger_prints_once_without_level_and_errors_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    init_logger()
    init_logger()
    logger.debug("hidden")
    logger.info("[bold] a line")
    logger.warning("a warning")
    logger.error("an error")
    assert capsys.readouterr() == ("[bold] a line\na warning\n", "an error\n")


def test_a_tilde_is_the_home_folder_also_behind_a_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    words = ["--data=~/cases", "~/run", "--set", "train.cache_dir=~/x", "a~b", "--out", "r=~"]
    assert read_words(words) == ["--data=/home/me/cases", "/home/me/run", *words[2:]]


def test_a_word_that_is_not_utf_8_is_refused_with_its_bytes(tmp_path: Path) -> None:
    data = os.fsdecode(bytes(tmp_path) + b"/\xff")
    done = subprocess.run(
        [sys.executable, "-m", "tune", "launch", "demo", "--data", data, "--out", tmp_path / "run"],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 2
    expected = f"error: b'{tmp_path}/\\xff': these bytes are not UTF-8; rename the file or folder\n"
    assert done.stderr == expected
    assert list(tmp_path.iterdir()) == []


def test_other_scripts_work_in_a_locale_of_ascii(tmp_path: Path) -> None:
    path = tmp_path / "脑🧠.yaml"
    path.write_text("space: {lr: {loguniform: [1e-5, 1e-2]}}\n")
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "tune", "check", path], capture_output=True, check=False, cwd=ROOT, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(b"ok\n")


def test_a_sweep_that_is_being_started_is_not_taken_for_a_wrong_folder(tmp_path: Path) -> None:
    with lock_folder(tmp_path):
        done = run_command("-m", "tune", "status", tmp_path)
    assert done.returncode == 2
    assert f"{tmp_path}: the sweep is being started and has no study.yaml yet; ask again" in done.stderr
