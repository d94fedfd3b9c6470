"""An empty path or value, as a variable that is not set makes it, is refused: it never is the current folder."""

from __future__ import annotations

from pathlib import Path

import pytest

import voxtune as vt
from trainable import cli
from trainable.core.errors import InputError
from trainable.core.files import user_path
from trainable.core.options import make_config, path_options
from tune.__main__ import read_words
from tune.spec.sweep_file import load_sweep_config


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["prepare", ""], "an argument"),
        (["prepare", "p", "--cache_dir", ""], "--cache_dir"),
        (["launch", "demo", "--data", "", "--out", "q"], "--data"),
        (["launch", "demo", "--data", "p", "--out="], "--out"),
        (["predict", "m", "p", "--out", ""], "--out"),
        (["predict", "m", ""], "an argument"),
        (["train", "--data_dir", "", "--output_dir", "a"], "--data_dir"),
    ],
)
def test_an_empty_word_of_the_command_line_is_refused(words: list[str], name: str) -> None:
    with pytest.raises(InputError, match=rf"^{name} is empty, .*; \. is the current folder$"):
        read_words(words)


def test_the_current_folder_can_be_said() -> None:
    words = ["launch", "demo", "--data", ".", "--out=.", "--set", "train.epochs=1"]
    assert read_words(words) == words
    assert user_path(".") == Path()


@pytest.mark.parametrize("option", path_options())
def test_an_empty_path_option_is_refused_in_files_and_flags(option: str) -> None:
    with pytest.raises(InputError, match=rf"{option} is ''; expected .*a path that is not empty"):
        make_config({option: ""})
    with pytest.raises(InputError, match=rf"--set train\.{option}|cannot|is ''"):
        load_sweep_config("demo", [f"train.{option}=''"])
    assert getattr(make_config({option: "."}), option) == Path()


@pytest.mark.parametrize("flag", ["--data_dir", "--output_dir", "--resume"])
def test_an_empty_path_of_train_py_is_exit_code_2_and_nothing_is_written(
    flag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    others = {"--data_dir": "data", "--output_dir": "out"}
    words = [word for pair in {**others, flag: ""}.items() for word in pair]
    assert cli.main(words) == 2
    assert "empty" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_an_empty_path_in_python_is_refused() -> None:
    for call in (lambda: vt.open(""), lambda: vt.load_model(""), lambda: vt.launch("demo", data="", out="q")):
        with pytest.raises(vt.InputError, match="a path is empty"):
            call()


@pytest.mark.parametrize("key", ["study.trials", "study.seed", "searcher.type", "train.lr", "train.cache_dir"])
def test_an_empty_value_is_refused_and_null_is_the_default(key: str) -> None:
    for text in (f"{key}=", f"{key}= ", f"{key}=# 3"):
        with pytest.raises(InputError, match=rf"--set {key}=.*: the value is empty; {key}=null drops the key"):
            load_sweep_config("demo", [text])


def test_null_drops_a_key() -> None:
    assert load_sweep_config("demo").budget.trials == 16
    assert load_sweep_config("demo", ["study.trials=null"]).budget.trials == 32
