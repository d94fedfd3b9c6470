"""train.py as its users type it."""

import csv
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from trainable import cli
from trainable.cases import load_split
from trainable.config import TrainConfig
from trainable.data import Data

ROOT = Path(__file__).parent.parent
SMALL = "--depth 3 --base_channels 4 --target_shape 16 16 16 --num_workers 0 --device cpu --patches_per_epoch 4"


def train(*words: object) -> subprocess.CompletedProcess[str]:
    """python train.py in a process of its own."""
    command = [sys.executable, str(ROOT / "train.py"), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


def test_the_four_commands_of_the_seed(phantoms: Path, prepared: Data, tmp_path: Path):
    """Basic, advanced, resume with a new lr, test only: each flag as written there, on a small network."""
    data = f"--data_dir {phantoms} --cache_dir {prepared.folder}"
    small = SMALL.split()
    one, two = tmp_path / "experiment_1", tmp_path / "experiment_advanced"
    basic = f"{data} --output_dir {one} --batch_size 2 --epochs 2 --amp --residual"
    done = train(*basic.split(), *small)
    assert done.returncode == 0, done.stderr
    assert "epoch   2/2" in done.stdout
    saved = json.loads((one / "training_config.json").read_text())
    assert (saved["amp"], saved["residual"], saved["optimizer"]) == ("fp16", True, "adam")
    names = {path.name for path in (one / "checkpoints").iterdir()}
    assert names == {"latest.pth", "best_model.pth"}

    advanced = (
        f"{data} --output_dir {two} --batch_size 1 --epochs 2 --optimizer adamw --scheduler cosine --focal_loss "
        "--deep_supervision --gradient_clipping 1.0 --accumulation_steps 4 --loss_weights 1.0 2.0"
    )
    assert cli.main([*advanced.split(), *small]) == 0
    saved = json.loads((two / "training_config.json").read_text())
    assert (saved["base_loss"], saved["loss_weights"], saved["accumulation_steps"]) == ("focal", [1.0, 2.0], 4)

    resumed = train("--resume", one / "checkpoints" / "latest.pth", "--lr", "5e-5", "--epochs", "3")
    assert resumed.returncode == 0, resumed.stderr
    assert "resume: lr is 5e-05 now, 0.0003 before" in resumed.stdout
    assert "epoch   3/3" in resumed.stdout
    assert "epoch   2/3" not in resumed.stdout
    rows = list(csv.DictReader((one / "metrics.csv").open()))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert float(rows[2]["lr"]) == 5e-5

    tested = train("--resume", one / "checkpoints" / "best_model.pth", "--test_only")
    assert tested.returncode == 0, tested.stderr
    scores = json.loads((one / "test_scores.json").read_text())
    assert set(scores["cases"]) == set(prepared.split.test)
    assert f"{scores['mean']['dice_WT']:.4f}" in tested.stdout
    assert f"{scores['mean']['hd95_WT']:.2f}" in tested.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--lr abc --data_dir X", "lr is 'abc'; expected a number > 0"),
        ("--learning_rate 1", "unknown argument '--learning_rate'"),
        ("--optimiser adam", r"did you mean --optimizer\?"),
        ("--optimizer adan --data_dir X", "optimizer is 'adan'; expected one of adam, adamw, sgd"),
        ("--target_shape 100 128 128 --data_dir X", "must be a multiple of 32"),
        ("", "--data_dir is missing"),
        ("--test_only --data_dir X", "--test_only needs a checkpoint"),
        ("--resume nowhere.pth", "nowhere.pth: no checkpoint there"),
        ("--data_dir /nonexistent", "/nonexistent"),
        ("--config /nonexistent.yaml", "cannot be read"),
    ],
)
def test_wrong_input_is_one_clear_message_and_exit_code_2(
    words: str, message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.chdir(tmp_path)
    assert cli.main(words.split()) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert re.search(message, error), error
    assert not list(tmp_path.iterdir())


def test_an_output_dir_in_use_is_refused(phantoms: Path, prepared: Data, tmp_path: Path, capsys):
    words = f"--data_dir {phantoms} --cache_dir {prepared.folder} --output_dir {tmp_path} --epochs 1 {SMALL}".split()
    assert cli.main(words) == 0
    before = torch.load(tmp_path / "checkpoints" / "latest.pth", weights_only=True)["network"]
    assert cli.main(words) == 2
    assert f"holds a training already; go on with --resume {tmp_path}" in capsys.readouterr().err
    after = torch.load(tmp_path / "checkpoints" / "latest.pth", weights_only=True)["network"]
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_test_only_keeps_the_split_of_the_training_when_the_folder_grows(phantoms: Path, tmp_path: Path, capsys):
    data, output = tmp_path / "data", tmp_path / "output"
    shutil.copytree(phantoms, data)
    words = f"--data_dir {data} --output_dir {output} --epochs 1 {SMALL}".split()
    assert cli.main(words) == 0
    shutil.copytree(data / "Phantom_00000", data / "A")
    for path in (data / "A").iterdir():
        path.rename(path.with_name(path.name.replace("Phantom_00000", "A")))
    model = str(output / "checkpoints" / "best_model.pth")
    assert cli.main(["--resume", model, "--test_only"]) == 0
    test = load_split(output / "split.json").test
    assert set(json.loads((output / "test_scores.json").read_text())["cases"]) == set(test)
    (output / "split.json").write_text(json.dumps({"train": ["A"], "val": [], "test": ["Phantom_00000"]}))
    assert cli.main(["--resume", model, "--test_only"]) == 2
    assert "a test case may have been trained on" in capsys.readouterr().err


def test_every_option_is_a_flag_with_its_meaning_in_the_help(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    for name, field in TrainConfig.model_fields.items():
        assert f"--{name}" in text
        assert str(field.description).split(";")[0] in text


def test_an_exported_recipe_is_accepted_and_flags_come_before_it(tmp_path: Path):
    (tmp_path / "best.yaml").write_text("# trial 3\noptimizer: sgd\nlr: 1e-2\nloss_weights: [1.0, 2.0]\n")
    options = cli.read_flags(["--config", str(tmp_path / "best.yaml"), "--lr", "0.5"])
    assert options == {"optimizer": "sgd", "lr": "0.5", "loss_weights": [1.0, 2.0]}


def test_focal_loss_beside_another_base_loss_is_refused(capsys):
    assert cli.main(["--focal_loss", "--base_loss", "tversky", "--data_dir", "X"]) == 2
    assert "focal_loss is true and base_loss is 'tversky'; drop one" in capsys.readouterr().err
