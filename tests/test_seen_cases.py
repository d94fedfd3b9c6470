"""What a model was trained on and selected by is on record, so that no score is of cases that it knows, unsaid."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from trainable.core.config import TrainConfig
from trainable.core.errors import InputError
from trainable.data.cache import CacheError, scan_of
from trainable.data.prepare import Data
from trainable.data.split import Split
from trainable.evaluate import evaluate
from trainable.predict import predict_cases
from trainable.train import train
from trainable.training.checkpoint import load_checkpoint, save_checkpoint
from trainable.training.seen_cases import History
from tune.cli import app


def tiny(output: Path, data: Data, **options: Any) -> TrainConfig:
    """The config of a training that takes a second."""
    values = {"depth": 2, "base_channels": 2, "target_shape": (16, 16, 16), "patches_per_epoch": 2, "num_workers": 0}
    return TrainConfig.model_validate(
        {"output_dir": output, "epochs": 1, "device": "cpu", "cache_dir": data.folder, **values, **options}
    )


@pytest.fixture(scope="module")
def with_val(prepared: Data, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training on the training and validation cases, as `retrain --with_val` makes it."""
    output = tmp_path_factory.mktemp("with_val") / "model"
    split = Split(tuple(sorted(prepared.split.train + prepared.split.val)), (), prepared.split.test)
    train(tiny(output, prepared), Data(prepared.folder, split))
    return output


def scans(data: Data, names: tuple[str, ...]) -> list[str]:
    """The scan_hash of these cases, sorted."""
    return sorted(scan_of(data.contents[name]) for name in names)


def test_a_checkpoint_has_the_content_of_the_cases_of_each_part(with_val: Path, prepared: Data) -> None:
    state = load_checkpoint(with_val)
    assert {name for part in state["cases"].values() for name in part} == set(prepared.split.names)
    assert {name: text for part in state["cases"].values() for name, text in part.items()} == prepared.contents
    assert (set(state["cases"]["val"]), set(state["cases"]["test"])) == (set(), set(prepared.split.test))
    assert state["seen"] == {"trained": [], "selected": [], "complete": True}


def test_pretrained_weights_that_were_trained_on_val_cases_are_refused_by_name(
    with_val: Path, prepared: Data, tmp_path: Path
) -> None:
    (val,) = prepared.split.val
    with pytest.raises(InputError, match=rf"too good: val: {val}; .*--allow_seen_cases"):
        train(tiny(tmp_path / "out", prepared, pretrained=with_val), prepared)
    assert not (tmp_path / "out" / "checkpoints").exists()


def test_pretrained_weights_that_were_selected_by_what_is_now_a_test_case_are_refused(
    prepared: Data, tmp_path: Path
) -> None:
    train(tiny(tmp_path / "a", prepared), prepared)
    split = Split(prepared.split.train, prepared.split.test, prepared.split.val)
    with pytest.raises(InputError, match=f"too good: test: {prepared.split.val[0]};"):
        train(tiny(tmp_path / "b", prepared, pretrained=tmp_path / "a"), Data(prepared.folder, split))
    train(tiny(tmp_path / "b", prepared, pretrained=tmp_path / "a"), prepared)  # selected by the same val cases again


def test_seen_cases_that_are_allowed_are_on_record_and_said_with_every_score(
    with_val: Path, phantoms: Path, prepared: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = "1 of 1 val cases were seen by the pretrained weights"
    allowed = tiny(tmp_path / "a", prepared, pretrained=with_val, allow_seen_cases=True)
    train(allowed, prepared)
    assert capsys.readouterr().out.count(said) == 2  # before and after the training
    seen = load_checkpoint(tmp_path / "a")["seen"]
    assert seen["trained"] == scans(prepared, prepared.split.train + prepared.split.val)
    train(allowed.model_copy(update={"resume": tmp_path / "a", "pretrained": None, "epochs": 2}), prepared)
    assert capsys.readouterr().out.count(said) == 2
    assert load_checkpoint(tmp_path / "a")["seen"] == seen
    with pytest.raises(InputError, match="too good: val"):  # inherited over two trainings
        train(tiny(tmp_path / "b", prepared, pretrained=tmp_path / "a"), prepared)
    test_is_val = Data(prepared.folder, Split(prepared.split.train, prepared.split.test, prepared.split.val))
    train(tiny(tmp_path / "c", prepared, pretrained=with_val, allow_seen_cases=True), test_is_val)
    capsys.readouterr()
    evaluate(tiny(tmp_path / "c", prepared, resume=tmp_path / "c"), test_is_val)
    assert "1 of 1 test cases were seen by the pretrained weights" in capsys.readouterr().out
    scores = json.loads((tmp_path / "c" / "test_scores.json").read_text())
    assert scores["seen_by_pretrained"] == list(prepared.split.val)
    (tested,) = prepared.split.val
    predict_cases(tmp_path / "c", [phantoms / tested, phantoms / prepared.split.test[0]], tmp_path / "out")
    printed = capsys.readouterr().out
    assert f"1/2 {tested}: test, seen by the pretrained weights\n" in printed
    assert f"2/2 {prepared.split.test[0]}: val\n" in printed


def test_weights_without_a_record_are_said_to_be_of_unknown_cases(
    with_val: Path, prepared: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(load_checkpoint(with_val)["network"], tmp_path / "bare.pth")
    train(tiny(tmp_path / "a", prepared, pretrained=tmp_path / "bare.pth"), prepared)
    assert "bare.pth does not say which cases it was trained on" in capsys.readouterr().out
    history = History.of_state(load_checkpoint(tmp_path / "a"))
    assert not history.complete
    assert list(history.trained) == scans(prepared, prepared.split.train)


def test_predict_marks_each_case_by_its_images_and_gives_means_by_part(
    prepared: Data, phantoms: Path, tmp_path: Path
) -> None:
    train(tiny(tmp_path / "model", prepared), prepared)
    split = prepared.split
    (tmp_path / "cases" / "Renamed").mkdir(parents=True)
    for path in (phantoms / split.train[0]).iterdir():  # a training case under another name
        shutil.copy(path, tmp_path / "cases" / "Renamed" / path.name.replace(split.train[0], "Renamed"))
    for name in (split.train[1], split.val[0], split.test[0]):
        shutil.copytree(phantoms / name, tmp_path / "cases" / name)
    words = ["predict", tmp_path / "model", tmp_path / "cases", "--out", tmp_path / "out"]
    done = CliRunner().invoke(app, list(map(str, words)))
    assert done.exit_code == 0, done.output
    parts = {"Renamed": "train", split.train[1]: "train", split.val[0]: "val", split.test[0]: "test"}
    content = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert content["parts"] == parts
    assert set(content["means"]) == {"train", "val", "test"}
    assert "mean" not in content
    two = [content["cases"][name]["dice_WT"] for name in ("Renamed", split.train[1])]
    assert content["means"]["train"]["dice_WT"] == pytest.approx(sum(two) / 2)
    assert content["means"]["test"] == pytest.approx(content["cases"][split.test[0]])
    table = list(csv.DictReader((tmp_path / "out" / "scores.csv").open()))
    assert {row["case"]: row["part"] for row in table} == parts


def test_cases_that_no_part_has_are_new_and_those_of_an_older_checkpoint_unknown(
    with_val: Path, prepared: Data, phantoms: Path, tmp_path: Path
) -> None:
    train(tiny(tmp_path / "model", prepared), Data(prepared.folder, Split(prepared.split.train, (), ())))
    case = phantoms / prepared.split.test[0]
    assert set(predict_cases(tmp_path / "model", [case], tmp_path / "out").parts.values()) == {"new"}
    state = load_checkpoint(with_val)
    old = {name: value for name, value in state.items() if name not in ("cases", "seen", "format")}
    save_checkpoint(old, tmp_path / "old.pth")
    assert set(predict_cases(tmp_path / "old.pth", [case], tmp_path / "out").parts.values()) == {"unknown"}


def test_resume_after_a_label_was_edited_is_refused_by_name(prepared: Data, tmp_path: Path) -> None:
    train(tiny(tmp_path / "a", prepared), prepared)
    edited = Data(prepared.folder, prepared.split)
    name = prepared.split.train[0]
    edited.contents[name] = prepared.contents[name][:-1] + "x"
    resumed = tiny(tmp_path / "a", prepared, resume=tmp_path / "a", epochs=2)
    with pytest.raises(InputError, match=rf"cases have changed since: {name} \(label\); restore them"):
        train(resumed, edited)
    assert load_checkpoint(tmp_path / "a")["epoch"] == 1
    train(resumed, prepared)
    assert load_checkpoint(tmp_path / "a")["epoch"] == 2


def test_a_checkpoint_of_an_older_version_does_not_become_complete_by_a_resume(prepared: Data, tmp_path: Path) -> None:
    config = tiny(tmp_path / "old", prepared)
    train(config, prepared)
    file = tmp_path / "old" / "checkpoints" / "latest.pth"
    state = load_checkpoint(file)
    save_checkpoint({name: value for name, value in state.items() if name not in ("cases", "seen")}, file)
    train(config.model_copy(update={"resume": file, "epochs": 2}), prepared)
    assert load_checkpoint(file)["seen"]["complete"] is False


def test_a_truth_that_changes_between_a_training_and_its_test_is_not_scored(prepared: Data, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    shutil.copytree(prepared.folder, cache)
    data = Data(cache, prepared.split)
    config = tiny(tmp_path / "out", data)
    train(config, data)
    path = cache / prepared.split.test[0] / "case.json"
    metadata = json.loads(path.read_text())
    metadata["files"]["label.npy"]["crc32"] ^= 1
    path.write_text(json.dumps(metadata))
    with pytest.raises(CacheError, match=rf"changed since the training began: {prepared.split.test[0]} \(label\)"):
        evaluate(config.model_copy(update={"resume": tmp_path / "out" / "checkpoints" / "best_model.pth"}), data)
    assert not (tmp_path / "out" / "test_scores.json").exists()
