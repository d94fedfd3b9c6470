"""Other cases under the names of those that a training began with: no number comes of a mixture, nor in silence."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from trainable import cli
from trainable.core.config import TrainConfig
from trainable.data.phantom import write_phantoms
from trainable.data.prepare import prepare_data

ROOT = Path(__file__).parent.parent
SMALL = "--depth 2 --base_channels 2 --target_shape 16 16 16 --num_workers 0 --device cpu --patches_per_epoch 4"


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """8 cases of another seed, named as those of `phantoms`."""
    folder = tmp_path_factory.mktemp("others") / "phantoms"
    write_phantoms(folder, cases=8, shape=(48, 48, 40), seed=9, workers=1)
    return folder


def test_test_only_on_other_cases_of_the_same_names_is_refused_and_says_what_to_do(
    phantoms: Path, others: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, cache = tmp_path / "out", tmp_path / "cache"
    assert cli.main(f"--data_dir {phantoms} --cache_dir {cache} --output_dir {out} --epochs 1 {SMALL}".split()) == 0
    names = json.loads((out / "split.json").read_text())["test"]
    words = f"--resume {out} --test_only --data_dir {others} --cache_dir {tmp_path / 'other_cache'}"
    assert cli.main(words.split()) == 2
    error = capsys.readouterr().err
    assert f"test cases are not those of {out}/checkpoints/best_model.pth: {names[0]} (images) differ" in error
    assert f"voxtune predict {out}/checkpoints/best_model.pth DATA_DIR --out DIR" in error
    assert not (out / "test_scores.json").exists()
    assert cli.main(f"--resume {out} --test_only".split()) == 0
    assert list(json.loads((out / "test_scores.json").read_text())["cases"]) == names


def test_a_cache_that_is_replaced_in_the_middle_ends_the_training_and_it_can_go_on(
    phantoms: Path, others: Path, tmp_path: Path
) -> None:
    out, cache, kept = tmp_path / "out", tmp_path / "cache", tmp_path / "kept"
    prepare_data(TrainConfig(data_dir=phantoms, cache_dir=cache), quiet=True)
    shutil.copytree(cache, kept)
    words = f"--data_dir {phantoms} --cache_dir {cache} --output_dir {out} --epochs 900 {SMALL}"
    process = subprocess.Popen(
        [sys.executable, ROOT / "train.py", *words.split()],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    assert process.stdout is not None
    while not process.stdout.readline().startswith("epoch   1/900"):
        assert process.poll() is None
    prepare_data(TrainConfig(data_dir=others, cache_dir=cache), quiet=True)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "error: cases have changed since the training began: Phantom_0000" in error
    assert f"The last finished epoch is kept; go on with: python train.py --resume {out}" in error
    shutil.rmtree(cache)
    kept.rename(cache)
    epochs = len((out / "metrics.csv").read_text().splitlines())  # with the heading, that is one more
    assert cli.main(f"--resume {out} --epochs {epochs}".split()) == 0
