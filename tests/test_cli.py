"""train.py as its users type it."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from trainable import cli
from trainable.core.config import TrainConfig
from trainable.data.prepare import Data
from trainable.data.split import load_split
from trainable.evaluation.lesions import score_lesions
from trainable.evaluation.metrics import score_case
from trainable.training import checkpoint

ROOT = Path(__file__).parent.parent
SMALL = (
    "--depth 3 --base_channels 4 --target_shape 16 16 16 --overlap 0 --num_workers 0 --device cpu --patches_per_epoch 4"
)


def train(*words: object) -> subprocess.CompletedProcess[str]:
    """Run python train.py in a separate process."""
    command = [sys.executable, str(ROOT / "train.py"), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


def test_the_four_commands_of_the_seed(
    phantoms: Path, prepared: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Basic, advanced, resume with a new lr, test only: each flag as written there, on a small network.

    The first is a process, as those of test_cli_verbs.py are.
    """
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

    capsys.readouterr()
    assert cli.main(["--resume", str(one / "checkpoints" / "latest.pth"), "--lr", "5e-5", "--epochs", "3"]) == 0
    printed = capsys.readouterr().out
    assert "resume: lr is 5e-05 now, 0.0003 before" in printed
    assert "epoch   3/3" in printed
    assert "epoch   2/3" not in printed
    rows = list(csv.DictReader((one / "metrics.csv").open()))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert float(rows[2]["lr"]) == 5e-5

    assert cli.main(["--resume", str(one / "checkpoints" / "best_model.pth"), "--test_only"]) == 0
    printed = capsys.readouterr().out
    scores = json.loads((one / "test_scores.json").read_text())
    assert set(scores["cases"]) == set(prepared.split.test)
    assert f"{scores['means']['test']['dice_WT']:.4f}" in printed
    assert f"{scores['means']['test']['hd95_WT']:.2f}" in printed


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
    assert f"already contains a training; go on with --resume {tmp_path}" in capsys.readouterr().err
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


@pytest.mark.parametrize(
    ("arguments", "command"),
    [((), "voxtune train"), (("python train.py",), "python train.py")],
    ids=["default", "given"],
)
def test_help_and_messages_name_the_command_in_use(arguments: tuple[str, ...], command: str, capsys):
    assert cli.main(["--learning_rate", "1"], *arguments) == 2
    assert f"see {command} --help" in capsys.readouterr().err
    assert cli.main(["--lr", "abc", "--data_dir", "X"], *arguments) == 2
    assert f"error: {command}: lr is 'abc'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["--help"], *arguments)
    assert f"  {command} --resume DIR --test_only" in capsys.readouterr().out


@pytest.fixture
def finished(phantoms: Path, prepared: Data, tmp_path: Path) -> Path:
    """The folder of a training of one epoch."""
    words = f"--data_dir {phantoms} --cache_dir {prepared.folder} --output_dir {tmp_path / 'out'} --epochs 1 {SMALL}"
    assert cli.main(words.split()) == 0
    return tmp_path / "out"


def test_results_go_into_output_dir(finished: Path):
    names = {path.name for path in finished.iterdir() if not path.name.startswith("events.out.tfevents.")}
    files = {"training_config.json", "split.json", "skipped_cases.txt", "metrics.csv", "case_scores.csv"}
    files |= {"checkpoints", ".lock"}
    assert names == files
    assert len(list(finished.iterdir())) == len(files) + 1


def test_test_only_writes_predictions_whose_files_give_the_scores_that_are_said(finished: Path, phantoms: Path, capsys):
    capsys.readouterr()
    assert cli.main(f"--resume {finished} --test_only --save_predictions --lesion_wise".split()) == 0
    said = capsys.readouterr().out
    scores = json.loads((finished / "test_scores.json").read_text())
    for name, case in scores["cases"].items():
        image = nib.load(finished / "predictions" / f"{name}.nii.gz")
        truth = nib.load(phantoms / name / f"{name}_seg.nii.gz")
        assert np.array_equal(image.affine, truth.affine)
        prediction, label = (np.asarray(each.dataobj).astype(np.uint8) for each in (image, truth))
        assert prediction.shape == label.shape
        assert case == pytest.approx(score_case(prediction, label) | score_lesions(prediction, label))
    heading = " ".join(said.splitlines()[1].split())
    kinds = ["Dice", "HD95 in mm", "sensitivity", "specificity"]
    assert heading == " ".join([*kinds, "Dice by lesion", "HD95 by lesion, mm"])
    assert f"{scores['means']['test']['specificity_WT']:.4f}" in said
    rows = list(csv.DictReader((finished / "test_scores.csv").open()))
    assert {row["case"]: float(row["sensitivity_ET"]) for row in rows} == {
        name: case["sensitivity_ET"] for name, case in scores["cases"].items()
    }
    shutil.rmtree(finished / "predictions")
    assert cli.main(f"--resume {finished} --test_only".split()) == 0
    assert not (finished / "predictions").exists()
    assert "lesion" not in (finished / "test_scores.csv").read_text()
    assert {path.name for path in (finished / "checkpoints").iterdir()} == {"latest.pth", "best_model.pth"}


def test_post_processing_can_be_tried_with_test_only(finished: Path, capsys):
    assert cli.main(f"--resume {finished} --test_only --min_component 999999".split()) == 0
    mean = json.loads((finished / "test_scores.json").read_text())["means"]["test"]
    assert (mean["dice_WT"], mean["sensitivity_WT"], mean["specificity_WT"]) == (0, 0, 1)
    assert "min_component is 999999 now, 0 before" in capsys.readouterr().out


def test_row_that_a_kill_kept_from_being_written_comes_from_the_checkpoint(finished: Path):
    whole = list(csv.DictReader((finished / "metrics.csv").open()))
    (finished / "metrics.csv").unlink()
    assert cli.main(f"--resume {finished} --epochs 2".split()) == 0
    rows = list(csv.DictReader((finished / "metrics.csv").open()))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert rows[0]["avg_total_loss"] == whole[0]["avg_total_loss"]


@pytest.mark.parametrize("also", ["", "--test_only"])
def test_what_cannot_change_on_resume_is_refused(finished: Path, capsys, also: str):
    assert cli.main(f"--resume {finished} --epochs 2 --seed 5 {also}".split()) == 2
    assert "--resume: seed is 0 in the checkpoint and 5 now; it cannot change on resume" in capsys.readouterr().err


def test_a_refused_resume_changes_nothing(finished: Path, prepared: Data, tmp_path: Path, capsys):
    split = {"train": list(prepared.split.train[1:]), "val": list(prepared.split.val), "test": []}
    (tmp_path / "other.json").write_text(json.dumps(split))
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file() and path.name != ".lock"}
    for words, message in [
        (f"--epochs 2 --split_file {tmp_path / 'other.json'}", "the cases or their split are not those"),
        ("--epochs 1", "has done 1 of 1 epochs"),
        ("--epochs 2 --folds 2", "folds is 0 in the checkpoint and 2 now"),
    ]:
        assert cli.main(f"--resume {finished} {words}".split()) == 2
        assert message in capsys.readouterr().err
    after = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file() and path.name != ".lock"}
    assert after == before


def test_options_given_on_resume_are_checked_beside_those_of_the_training(finished: Path, capsys):
    """A patch that depth 3 takes and the default depth does not; the short form of another base loss."""
    assert cli.main(f"--resume {finished} --epochs 2 --target_shape 24 24 24 --focal_loss".split()) == 0
    said = capsys.readouterr().out
    assert "base_loss is focal now, bce before" in said
    assert "target_shape is [24, 24, 24] now, [16, 16, 16] before" in said
    assert cli.main(f"--resume {finished} --pretrained {finished}".split()) == 2
    assert "--pretrained is what a new training starts from" in capsys.readouterr().err


def test_resume_keeps_the_pictures_of_the_epochs_before(finished: Path):
    assert cli.main(f"--resume {finished} --epochs 2".split()) == 0
    events = EventAccumulator(str(finished), size_guidance={"images": 0}).Reload()
    (tag,) = events.Tags()["images"]
    assert [image.step for image in events.Images(tag)] == [1, 2]


def test_output_dir_of_a_running_training_is_refused(finished: Path, capsys):
    script = (
        "import sys; from pathlib import Path; from trainable.core.locks import lock_folder\n"
        f"with lock_folder(Path({str(finished)!r})): print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    assert cli.main(f"--resume {finished} --epochs 2".split()) == 2
    assert f"{finished} is in use by process {holder.pid} on " in capsys.readouterr().err
    holder.communicate("")
    assert cli.main(f"--resume {finished} --epochs 2".split()) == 0


def test_output_dir_that_cannot_be_written_is_said(phantoms: Path, prepared: Data, tmp_path: Path, capsys):
    (tmp_path / "file").write_text("")
    words = f"--data_dir {phantoms} --cache_dir {prepared.folder} --output_dir {tmp_path / 'file' / 'out'} {SMALL}"
    assert cli.main(words.split()) == 2
    error = capsys.readouterr().err
    assert f"{tmp_path / 'file' / 'out'}: cannot be written (Not a directory); choose another folder" in error


def test_full_disk_ends_a_training_with_its_last_epoch_kept(
    finished: Path, phantoms: Path, prepared: Data, tmp_path: Path, capsys
):
    """A real small file system: what an epoch writes fits, half a checkpoint more does not."""
    used = sum(path.stat().st_size for path in finished.rglob("*")) // 1024
    checkpoint_size = (finished / "checkpoints" / "latest.pth").stat().st_size // 1024
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={used + checkpoint_size // 2}k", "tmpfs", disk],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip("only root can mount a small disk")
    try:
        words = f"--data_dir {phantoms} --cache_dir {prepared.folder} --output_dir {disk / 'out'} --epochs 3 {SMALL}"
        assert cli.main(words.split()) == 2
        error = capsys.readouterr().err
        assert "No space left on device" in error
        assert (
            "there is no space for it; free some. The last finished epoch is kept; go on with: voxtune train --resume "
            in error
        )
        state = checkpoint.load_checkpoint(disk / "out")
        assert state["epoch"] in (1, 2)
        subprocess.run(["mount", "-o", "remount,size=8m", disk], check=True)
        assert cli.main(["--resume", str(disk / "out")]) == 0
        assert checkpoint.load_checkpoint(disk / "out")["epoch"] == 3
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_training_that_diverges_says_where_and_what_to_do(phantoms: Path, prepared: Data, tmp_path: Path, capsys):
    words = f"--data_dir {phantoms} --cache_dir {prepared.folder} --output_dir {tmp_path} {SMALL} --epochs 9"
    diverging = "--optimizer sgd --lr 1e30 --max_skipped_steps 2 --val_freq 9"
    assert cli.main([*words.split(), *diverging.split()]) == 1
    said = capsys.readouterr().out
    assert re.search(
        r"not finite in [23] steps in a row, the first in epoch \d, batch \d \(Phantom_.*\) at lr 1.00e\+30", said
    )
    assert "Lower --lr, or set --gradient_clipping" in said
    assert "and no checkpoint is older; start a new training in another --output_dir" in said


def test_a_training_whose_last_checkpoint_diverges_at_any_lr_says_which_one_to_go_back_to(finished: Path, capsys):
    """Two steps an epoch: the first of epoch 3 is good and ruins the weights, which that epoch saves."""
    assert cli.main(f"--resume {finished} --epochs 2 --save_freq 1".split()) == 0
    diverging = "--lr 1e30 --epochs 9 --max_skipped_steps 3 --val_freq 9"
    assert cli.main(f"--resume {finished} {diverging}".split()) == 1
    assert checkpoint.load_checkpoint(finished)["epoch"] == 3
    said = re.search(r"; go back to the ones before with: voxtune train --resume (.*)", capsys.readouterr().out)
    assert said
    assert said[1] in {str(finished / "checkpoints" / name) for name in ("epoch_0002.pth", "best_model.pth")}
    assert cli.main(f"--resume {said[1]} --lr 1e-4 --epochs 4".split()) == 0


def test_ctrl_c_says_how_to_go_on(phantoms: Path, prepared: Data, tmp_path: Path):
    words = f"--data_dir {phantoms} --cache_dir {prepared.folder} --output_dir {tmp_path} {SMALL} --epochs 900"
    command = [sys.executable, str(ROOT / "train.py"), *words.split(), "--num_workers", "1"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    while not process.stdout.readline().startswith("epoch   3/900"):
        assert process.poll() is None
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    output, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert f"go on with: python train.py --resume {tmp_path}" in output
    assert "Traceback" not in error
    assert checkpoint.load_checkpoint(tmp_path)["epoch"] >= 3


MEMORY_PROFILES = [
    "--batch_size 1 --accumulation_steps 4 --target_shape 96 96 96",
    "--batch_size 2 --accumulation_steps 2 --target_shape 128 128 128",
    "--batch_size 4 --target_shape 160 160 160",
]
STRATEGIES = {
    "--epochs 50 --val_freq 2 --save_freq 10": {"epoch_0010.pth", "epoch_0050.pth"},
    "--epochs 200 --patience 20 --val_freq 1 --save_freq 5": {"epoch_0005.pth", "epoch_0020.pth"},
    "--lr 5e-5 --scheduler cosine --gradient_clipping 0.5": {"epoch_0100.pth"},
}


@pytest.mark.slow
@pytest.mark.parametrize(("words", "files"), STRATEGIES.items(), ids=STRATEGIES.keys())
def test_training_strategies_of_the_guide_run_as_written(
    words: str, files: set[str], phantoms: Path, prepared: Data, tmp_path: Path, capsys
):
    common = f"--data_dir {phantoms} --cache_dir {prepared.folder} --output_dir {tmp_path} {SMALL}"
    assert cli.main([*common.split(), *words.split()]) == 0
    assert re.search(r"ended by (last epoch|patience of 20 validations)", capsys.readouterr().out)
    assert files <= {path.name for path in (tmp_path / "checkpoints").iterdir()}


@pytest.mark.parametrize("words", [*MEMORY_PROFILES, *STRATEGIES])
def test_memory_profiles_and_training_strategies_of_the_guide_are_taken_as_written(words: str):
    config = cli.resolve(cli.read_flags(words.split()))
    for name, *values in (flag.split() for flag in words.split("--")[1:]):
        given = getattr(config, name)
        given = given if isinstance(given, tuple) else (given,)
        assert given == tuple(type(value)(text) for value, text in zip(given, values, strict=True))


def test_every_option_is_a_flag_with_its_meaning_in_the_help(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    for name, field in TrainConfig.model_fields.items():
        assert f"--{name}" in text
        assert str(field.description).split(";")[0] in text


def test_the_options_of_a_training_start_another_and_never_a_resume(finished: Path, tmp_path: Path, capsys):
    assert cli.main(f"--resume {finished} --epochs 2".split()) == 0
    file = finished / "training_config.json"
    assert cli.main(f"--config {file}".split()) == 2
    assert "already contains a training" in capsys.readouterr().err
    assert cli.main(f"--config {file} --output_dir {tmp_path / 'other'} --epochs 1".split()) == 0
    assert checkpoint.load_checkpoint(tmp_path / "other")["epoch"] == 1
    for line, message in [
        ("resume: x", "resume belongs on the command line"),
        ("lrr: 1", r"unknown option 'lrr' .*lr\?"),
    ]:
        (tmp_path / "recipe.yaml").write_text(line + "\n")
        assert cli.main(f"--config {tmp_path / 'recipe.yaml'} --data_dir X".split()) == 2
        assert re.search(f"recipe.yaml: {message}", capsys.readouterr().err)


def test_scores_say_what_they_are_scores_of(finished: Path):
    assert cli.main(f"--resume {finished} --test_only --mirror --et_threshold 5".split()) == 0
    scores = json.loads((finished / "test_scores.json").read_text())
    assert scores["checkpoint"].endswith("best_model.pth")
    assert (scores["epoch"], scores["mirror"], scores["et_threshold"], scores["overlap"]) == (1, True, 5, 0)


@pytest.mark.parametrize(
    ("flag", "message"), [("--pretrained", "no checkpoint there"), ("--split_file", "cannot be read")]
)
def test_a_missing_file_is_said_before_cases_are_prepared(
    phantoms: Path, tmp_path: Path, capsys, flag: str, message: str
):
    words = (
        f"--data_dir {phantoms} --cache_dir {tmp_path / 'cache'} --output_dir {tmp_path / 'out'} {flag} /nonexistent"
    )
    assert cli.main(words.split()) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_an_exported_recipe_is_accepted_and_flags_come_before_it(tmp_path: Path):
    (tmp_path / "best.yaml").write_text("# trial 3\noptimizer: sgd\nlr: 1e-2\nloss_weights: [1.0, 2.0]\n")
    options = cli.read_flags(["--config", str(tmp_path / "best.yaml"), "--lr", "0.5"])
    assert options == {"optimizer": "sgd", "lr": "0.5", "loss_weights": [1.0, 2.0]}


def test_focal_loss_beside_another_base_loss_is_refused(capsys):
    assert cli.main(["--focal_loss", "--base_loss", "tversky", "--data_dir", "X"]) == 2
    assert "focal_loss is true and base_loss is 'tversky'; drop one" in capsys.readouterr().err
