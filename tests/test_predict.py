"""What predict takes as arguments, and what is in its folder afterwards."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers import clean_environment

from trainable.core.config import TrainConfig
from trainable.core.errors import InputError
from trainable.core.options import to_dict
from trainable.model.unet3d import build_network
from trainable.predict import predict_cases
from trainable.prediction_scores import open_score_file
from trainable.training.checkpoint import save_checkpoint
from trainable.training.ensemble import load_ensemble
from tune.cli import app
from tune.cli.models import predict

CONFIG = TrainConfig(depth=3, base_channels=4, target_shape=(32, 32, 32))


def make_model(path: Path, seed: int) -> Path:
    """The checkpoint of a network that learnt nothing."""
    torch.manual_seed(seed)
    save_checkpoint({"config": to_dict(CONFIG), "network": build_network(CONFIG).state_dict()}, path)
    return path


FULL_GPU = """
import torch
from trainable.evaluation import inference
from tune.__main__ import main
def full(*_, **__):
    raise torch.OutOfMemoryError("CUDA out of memory (injected)")
inference.sliding_window = full
main()
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_model(tmp_path / "model.pth", 0)


@pytest.fixture
def data(phantoms: Path, tmp_path: Path) -> Path:
    """A folder of two cases."""
    for name in ("Phantom_00000", "Phantom_00001"):
        shutil.copytree(phantoms / name, tmp_path / "data" / name)
    return tmp_path / "data"


def scored(out: Path) -> list[str]:
    """The names of the cases in scores.json, which are those in scores.csv."""
    names = list(json.loads((out / "scores.json").read_text())["cases"])
    assert [line.split(",")[0] for line in (out / "scores.csv").read_text().splitlines()[1:]] == names
    return names


def test_arguments_that_are_no_case_are_named_at_the_end_and_the_rest_is_predicted(
    model: Path, data: Path, tmp_path: Path
) -> None:
    (data / "notes").mkdir()
    (data / "a.csv").write_text("x")
    with pytest.raises(InputError) as caught:
        predict(model, sorted(data.iterdir()), tmp_path / "out")
    first, *lines = str(caught.value).splitlines()
    assert first == "2 arguments are no cases and were passed over:"
    assert [line.strip().split(";")[0] for line in lines] == [
        f"{data / 'a.csv'}: is a file",
        f"{data / 'notes'}: contains no case",
    ]
    assert scored(tmp_path / "out") == ["Phantom_00000", "Phantom_00001"]


def test_without_any_case_each_argument_is_named(model: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty: contains no case; expected .*\n.*model\.pth: is a file; expected"):
        predict_cases(model, [tmp_path / "empty", model], tmp_path / "out")
    with pytest.raises(InputError, match="nowhere: no such folder"):
        predict_cases(model, [tmp_path / "nowhere"], tmp_path / "out")


def test_predictions_may_go_into_the_folder_of_the_cases_again_and_again(
    model: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predict(model, [data], data)
    predict(model, [data, data / "Phantom_00001"], data)
    out = capsys.readouterr().out
    assert f"passed over: 2 NIfTI files beside the cases, such as {data / 'Phantom_00000.nii.gz'}\n" in out
    assert out.count("2/2 Phantom_00001: ") == 2
    assert scored(data) == ["Phantom_00000", "Phantom_00001"]


def test_a_truth_that_cannot_be_used_does_not_keep_its_case_from_being_predicted(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seg = data / "Phantom_00000" / "Phantom_00000_seg.nii.gz"
    predict(model, [data / "Phantom_00000"], tmp_path / "out")
    nib.save(nib.Nifti1Image(np.full((48, 48, 40), 7, np.uint8), nib.load(seg).affine), seg)
    predict(model, [data], tmp_path / "out")
    line = "Phantom_00000 is predicted without scores, as its truth cannot be used: Phantom_00000: Phantom_00000_seg"
    assert line in capsys.readouterr().out
    assert (tmp_path / "out" / "Phantom_00000.nii.gz").exists()
    assert scored(tmp_path / "out") == ["Phantom_00001"]
    predict(model, [data / "Phantom_00000"], tmp_path / "alone")
    assert {path.name for path in (tmp_path / "alone").iterdir()} == {"Phantom_00000.nii.gz"}


def test_scores_of_earlier_calls_stay_unless_another_model_predicts(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    predict(model, [data / "Phantom_00001"], out)
    before = json.loads((out / "scores.json").read_text())["cases"]
    predict(model, [data / "Phantom_00000"], out)
    assert scored(out) == ["Phantom_00000", "Phantom_00001"]
    together = json.loads((out / "scores.json").read_text())
    assert together["cases"]["Phantom_00001"] == before["Phantom_00001"]
    dice = [case["dice_mean"] for case in together["cases"].values()]
    assert together["parts"] == dict.fromkeys(["Phantom_00000", "Phantom_00001"], "unknown")
    assert together["means"]["unknown"]["dice_mean"] == pytest.approx(sum(dice) / 2)
    assert "another model" not in capsys.readouterr().out
    predict(make_model(tmp_path / "other.pth", 1), [data / "Phantom_00000"], out)
    line = f"{out / 'scores.json'} has the scores of 2 cases by another model; new scores replace them"
    assert line in capsys.readouterr().out
    assert scored(out) == ["Phantom_00000"]


def test_two_calls_at_once_into_one_folder_keep_the_scores_of_both(model: Path, tmp_path: Path) -> None:
    """As on two GPUs, each with half of the cases."""
    out, ensemble = tmp_path / "out", load_ensemble([model], torch.device("cpu"))
    out.mkdir()

    def save_one_after_the_other(call: str) -> None:
        file, scores = open_score_file(out, model, ensemble, mirror=False), dict[str, dict[str, float]]()
        begun.wait()
        for number in range(25):
            scores[f"{call}{number:02}"] = {"dice_mean": number / 25}
            file.save(scores, dict.fromkeys(scores, "new"), scores)

    begun = threading.Barrier(2)
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(save_one_after_the_other, "ab"))
    assert scored(out) == [f"{call}{number:02}" for call in "ab" for number in range(25)]


def test_a_table_of_scores_alone_as_a_kill_leaves_it_is_replaced_and_any_other_is_not(
    model: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    predict(model, [data / "Phantom_00001"], out)
    (out / "scores.json").unlink()
    predict(model, [data / "Phantom_00000"], out)
    assert scored(out) == ["Phantom_00000"]
    (out / "scores.json").unlink()
    (out / "scores.csv").write_text("case,grade\n")
    with pytest.raises(InputError, match=r"scores\.csv is not of predictions, and would be overwritten"):
        predict(model, [data / "Phantom_00000"], out)


def test_a_full_disk_names_the_file_and_leaves_whole_files_and_the_scores_so_far(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    predict(model, [data / "Phantom_00000"], out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))  # no file may grow beyond 100 bytes
    try:
        with pytest.raises(InputError, match=r"Phantom_00000\.nii\.gz: cannot be written .*; free some space; 0 of 2"):
            predict(model, [data], out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "1/2 Phantom_00000: " in capsys.readouterr().out  # held in memory: the limit is on files
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_a_full_gpu_is_an_error_that_says_what_to_do(model: Path, data: Path, tmp_path: Path) -> None:
    words = ["predict", str(model), str(data), "--out", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-c", FULL_GPU, *words],
        capture_output=True, text=True, check=False, env=clean_environment(),
    )  # fmt: skip
    assert done.returncode == 2
    *_, line = done.stderr.splitlines()
    assert line.startswith("error: out of GPU memory: CUDA out of memory (injected). Free memory, take another GPU")
    assert "predict --device cpu" in line
    assert "Traceback" not in done.stderr


def test_the_scores_before_an_output_that_cannot_be_written_are_kept(model: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "Phantom_00001.nii.gz").mkdir(parents=True)
    with pytest.raises(InputError, match=r"Phantom_00001\.nii\.gz: cannot be written .*; 1 of 2 cases are predicted"):
        predict(model, [data], out)
    assert scored(out) == ["Phantom_00000"]


def test_a_case_that_is_named_as_a_mean_has_a_row_of_its_own(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["case", "mean", "mean unknown", "part"]
    for number, name in enumerate(names):
        (tmp_path / "named" / name).mkdir(parents=True)
        for file in (data / f"Phantom_0000{number % 2}").iterdir():
            shutil.copy(file, tmp_path / "named" / name / file.name.replace(file.name[:13], name))
    predict(model, [tmp_path / "named"], tmp_path / "out", device="cpu")
    table = capsys.readouterr().out.splitlines()
    starts = [line[:23].rstrip() for line in table[-7:-1]]
    assert starts == [
        "case          part",
        *(f"{name:<12}  unknown" for name in names),
        "mean unknown",
    ]
    assert scored(tmp_path / "out") == names
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert list(scores["means"]) == ["unknown"]
    dice = [case["dice_mean"] for case in scores["cases"].values()]
    assert scores["means"]["unknown"]["dice_mean"] == pytest.approx(sum(dice) / 4)


def test_the_folder_of_a_sweep_is_refused_with_the_models_in_it(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").touch()
    with pytest.raises(InputError, match=rf"is the folder of a sweep; predict with {tmp_path}/best, its winner"):
        app(["predict", str(tmp_path), str(tmp_path), "--out", str(tmp_path / "out")], standalone_mode=False)
