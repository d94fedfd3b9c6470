"""What a command writes where the user says replaces nothing that is not its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import SWEEP, make_report

from trainable import cli
from trainable.core.config import TrainConfig
from trainable.core.errors import InputError
from trainable.core.options import make_config, to_dict
from trainable.data.cache import ARRAYS
from trainable.data.phantom import write_phantoms
from trainable.data.prepare import Data, prepare_data
from trainable.data.split import Split, load_split, save_split
from trainable.model.unet3d import build_network
from trainable.predict import predict_cases
from trainable.train import train
from trainable.training.checkpoint import load_checkpoint, save_checkpoint
from trainable.training.training_log import TrainingLog
from tune.cli.sweeps import best
from tune.confirmation.export import recipe_text
from tune.driver.recording.recorder import LostCheckpointError, same_but_for_folder, sync_best
from tune.driver.sweep import finalize
from tune.retrain import retrain
from tune.run.results import read_run
from tune.run.snapshot import Snapshot
from tune.search.journal import Journal
from tune.spec.sweep_config import make_sweep_config
from tune.spec.sweep_file import dump, load_sweep_config

TINY = {"depth": 2, "base_channels": 2, "target_shape": (16, 16, 16), "patches_per_epoch": 2, "num_workers": 0}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of one complete trial, whose checkpoint is gone."""
    folder, split = tmp_path / "run", Split(("a", "b"), ("c",), ())
    folder.mkdir()
    study = make_sweep_config({**SWEEP, "study": {"trials": 1}, "train": {"epochs": 1}})
    save_split(split, folder / "split.json")
    (folder / "study.yaml").write_text(dump(study.with_record(split=split.digest())))
    journal = Journal(folder, study)
    journal.ask()
    report = make_report(1, 0.5, end_reason="epochs")
    TrainingLog(folder / "trials" / "0000").write(report)
    journal.record(0, report, checkpoint="attempt/0000/checkpoint_000000")
    journal.tell(0)
    (folder / "best").mkdir()
    (folder / "best" / "config.yaml").write_text(recipe_text(read_run(folder), read_run(folder).best(), "split.json"))
    return folder


def contents(folder: Path) -> dict[Path, bytes]:
    """The files below a folder."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "file", ["journal.log", "study.yaml", "split.json", "best/config.yaml", "trials/0000/metrics.csv"]
)
def test_an_export_onto_a_file_of_the_run_is_refused(run: Path, file: str) -> None:
    before = contents(run)
    with pytest.raises(InputError, match=rf"{file} exists and is no earlier export .*; nothing is written"):
        best(run, export=run / file)
    assert contents(run) == before


def test_an_export_replaces_an_earlier_export_of_its_name_and_nothing_else(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    best(run, export=tmp_path / "a.yaml")
    assert "in place of" not in capsys.readouterr().out
    best(run, export=tmp_path / "a.yaml")
    assert f"wrote {tmp_path / 'a.yaml'}, in place of an earlier export" in capsys.readouterr().out
    (tmp_path / "a.yaml").rename(tmp_path / "b.yaml")
    before = contents(tmp_path)
    with pytest.raises(InputError, match=r"b\.yaml exists and is no earlier export"):
        best(run, export=tmp_path / "b.yaml")
    assert contents(tmp_path) == before


def test_an_export_beside_the_file_of_another_split_is_refused(run: Path, tmp_path: Path) -> None:
    other = Split(("a",), ("b",), ("c",))
    save_split(other, tmp_path / "a.split.json")
    with pytest.raises(InputError, match=r"a\.split\.json exists and has another split"):
        best(run, export=tmp_path / "a.yaml")
    assert not (tmp_path / "a.yaml").exists()
    assert load_split(tmp_path / "a.split.json") == other


def test_an_export_that_can_be_no_file_names_its_path(run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"{tmp_path} is a folder; give --export the name of a file, such as"):
        best(run, export=tmp_path)
    with pytest.raises(InputError, match=f"{tmp_path}/nowhere: no such folder"):
        best(run, export=tmp_path / "nowhere" / "a.yaml")


@pytest.mark.parametrize("has_recipe", [True, False])
def test_a_winner_without_its_checkpoint_is_said_and_the_run_ends_well(
    has_recipe: bool, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """RUN was not there when the sweep ended, or the model was deleted."""
    if not has_recipe:
        (run / "best" / "config.yaml").unlink()
    result = read_run(run)
    with pytest.raises(LostCheckpointError, match="checkpoint of trial 0, the winner, is lost"):
        sync_best(result)
    assert finalize(result, Snapshot(result)) == result
    line = f"; the scores stand, and {run}/best has no model: train the recipe again with voxtune retrain {run}\n"
    assert capsys.readouterr().out.endswith(line)


def test_the_model_of_a_moved_run_is_known_again_by_its_recipe(run: Path) -> None:
    (run / "best" / "best_model.pth").touch()
    moved = run.rename(run.parent / "moved")
    text = (moved / "best" / "config.yaml").read_text()
    assert "trial 0 of run:" in text
    assert sync_best(read_run(moved))
    assert "trial 0 of moved:" in (moved / "best" / "config.yaml").read_text()
    assert not same_but_for_folder(text, text.replace("trial 0", "trial 1"))
    assert not same_but_for_folder(text, text.replace("overlap: 0.5", "overlap: 0.6"))


@pytest.mark.parametrize("option", ["labels", "pretrained"])
def test_a_file_of_the_sweep_that_is_gone_is_named_before_anything_is_written(
    run: Path, tmp_path: Path, option: str
) -> None:
    config, file = load_sweep_config(run / "study.yaml"), tmp_path / "file"
    (run / "study.yaml").write_text(dump(config.with_train({**config.train, option: str(file)})))
    before = contents(run)
    with pytest.raises(InputError, match=f"{file} is not there any more, and {run} needs it as its {option}; restore"):
        retrain(run)
    assert contents(run) == before
    file.touch()
    read_run(run).require_file(option)
    (run / "study.yaml").write_text(dump(config.with_train({**config.train, "labels": "2021"})))
    read_run(run).require_file("labels")  # a word, no file


@pytest.fixture
def make_model(tmp_path: Path) -> Callable[[int], Path]:
    """A function that writes the checkpoint of a network that learnt nothing, drawn from a seed."""

    def make(seed: int) -> Path:
        config, path = TrainConfig(depth=2, base_channels=2, target_shape=(32, 32, 32)), tmp_path / f"{seed}.pth"
        torch.manual_seed(seed)
        save_checkpoint({"config": to_dict(config), "network": build_network(config).state_dict()}, path)
        return path

    return make


def test_predictions_of_another_model_are_replaced_with_a_word(
    make_model: Callable[[int], Path], phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case, out = phantoms / "Phantom_00000", tmp_path / "out"
    said = f"{out}: Phantom_00000.nii.gz of another call will be replaced\n"
    for model, replaced in ((1, False), (1, False), (2, True)):
        predict_cases(make_model(model), [case], out, device="cpu")
        assert (said in capsys.readouterr().out) == replaced


@pytest.mark.parametrize(("name", "text"), [("scores.json", '{"a": 1}'), ("scores.json", "[1]"), ("scores.csv", "a,b")])
def test_scores_of_something_else_are_not_replaced(
    make_model: Callable[[int], Path], phantoms: Path, tmp_path: Path, name: str, text: str
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text(text)
    with pytest.raises(InputError, match=f"{out / name} is not of predictions, and would be overwritten"):
        predict_cases(make_model(1), [phantoms / "Phantom_00000"], out, device="cpu")
    assert contents(out) == {out / name: text.encode()}


def test_predictions_into_a_file_are_refused_with_its_path(
    make_model: Callable[[int], Path], phantoms: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=f"{tmp_path}/file is a file; give the folder of the predictions with --out"):
        predict_cases(make_model(1), [phantoms / "Phantom_00000"], tmp_path / "file", device="cpu")


def test_a_cache_replaces_no_folder_of_something_else(phantoms: Path, tmp_path: Path) -> None:
    notes = tmp_path / "Phantom_00003" / "notes.txt"
    notes.parent.mkdir()
    notes.write_text("mine")
    config = TrainConfig(data_dir=phantoms, cache_dir=tmp_path)
    with pytest.raises(InputError, match="contains folders that are no prepared cases, such as Phantom_00003"):
        prepare_data(config, quiet=True)
    assert contents(tmp_path) == {notes: b"mine"}
    notes.rename(notes.with_name(ARRAYS[0]))  # what a killed writer of an older version may have left
    prepare_data(config, quiet=True)


def test_a_training_replaces_no_split_of_something_else(prepared: Data, tmp_path: Path) -> None:
    mine = {"train": ["x"], "val": [], "test": []}
    (tmp_path / "split.json").write_text(json.dumps(mine))
    config = make_config({**TINY, "output_dir": tmp_path, "epochs": 1, "device": "cpu"})
    with pytest.raises(InputError, match=r"split\.json is not of a training, and would be overwritten"):
        train(config, prepared)
    assert json.loads((tmp_path / "split.json").read_text()) == mine
    save_split(prepared.split, tmp_path / "split.json")
    train(config.model_copy(update={"split_file": tmp_path / "split.json"}), prepared)


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("run/best", "belongs to the sweep"),
        ("run/ray/attempt/0000/restored", "belongs to the sweep"),
        ("run/ray/attempt/0000/checkpoint_000000", "is a checkpoint of a sweep"),
        ("storage/attempt/0000/checkpoint_000000", "is a checkpoint of a sweep"),
        ("run/retrain", "belongs to the sweep"),
        ("run/retrain/final", ""),
        ("run/retrain/final/members/fold_0", ""),
        ("run/confirm/default/seed_1", ""),
    ],
)
def test_no_training_writes_where_a_sweep_keeps_its_own(
    run: Path, prepared: Data, tmp_path: Path, place: str, said: str
) -> None:
    model = tmp_path / place / "latest.pth"
    config = make_config({**TINY, "output_dir": tmp_path / "model", "epochs": 1, "device": "cpu"})
    train(config, prepared)
    save_checkpoint(load_checkpoint(tmp_path / "model"), model)
    words = [f"--resume={model}", "--epochs=2", f"--data_dir={tmp_path}", f"--cache_dir={prepared.folder}"]
    config = cli.resolve(cli.read_flags(words))
    before = contents(tmp_path)
    if not said:
        assert train(config, prepared).epoch == 2
        return
    with pytest.raises(InputError, match=f"{tmp_path / place} {said}.*; take another --output_dir"):
        train(config, prepared)
    assert contents(tmp_path) == before


def test_a_resumed_training_does_not_move_into_the_folder_of_a_case(prepared: Data, tmp_path: Path) -> None:
    data, case = tmp_path / "data", tmp_path / "data" / "Phantom_00000"
    write_phantoms(data, cases=1, shape=(32, 32, 32), workers=1)
    train(make_config({**TINY, "output_dir": tmp_path / "out", "epochs": 1, "device": "cpu"}), prepared)
    before = contents(data)
    for folder, said in ((case, f"{case} belongs to the case in "), (data, f"{data} is the folder of the cases")):
        words = [f"--resume={tmp_path / 'out'}", "--epochs=2", f"--data_dir={data}", f"--output_dir={folder}"]
        with pytest.raises(InputError, match=said):
            cli.resolve(cli.read_flags(words))
    assert contents(data) == before
