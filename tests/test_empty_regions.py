"""Trainings without tumours are refused; regions that no case of a part has are said, since their Dice says nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from changed_cases import change_files
from helpers import voxtune

from trainable.core.config import TrainConfig
from trainable.core.errors import InputError
from trainable.core.options import make_config
from trainable.data.empty_regions import check_regions, empty_regions
from trainable.data.prepare import Data, prepare_data
from trainable.train import train

TRAIN, VAL = ("Phantom_00000", "Phantom_00001"), ("Phantom_00002",)


@pytest.fixture
def cases(phantoms: Path, tmp_path: Path) -> Path:
    """A folder of three cases that a test may spoil, with a split in split.json."""
    for name in (*TRAIN, *VAL):
        shutil.copytree(phantoms / name, tmp_path / "data" / name)
    (tmp_path / "split.json").write_text(json.dumps({"train": TRAIN, "val": VAL, "test": []}))
    return tmp_path / "data"


def keep(cases: Path, names: Sequence[str], most: int) -> None:
    """Make labels above `most` that label, in the truths of these cases: of 0 no tumour is left, of 1 no ET."""
    for name in names:
        change_files(cases / name, lambda voxels, affine: (np.minimum(voxels, most).astype(np.uint8), affine), "seg")


def config_of(cases: Path, **more: Any) -> TrainConfig:
    options = {"data_dir": cases, "split_file": cases.parent / "split.json", "device": "cpu", "depth": 2}
    small = {"base_channels": 4, "target_shape": [16, 16, 16], "num_workers": 0, "epochs": 1, "patches_per_epoch": 2}
    return make_config({**options, **small, **more})


def prepared_of(cases: Path) -> Data:
    return prepare_data(config_of(cases), quiet=True)


def test_a_training_without_any_tumour_is_refused(cases: Path, tmp_path: Path) -> None:
    keep(cases, TRAIN, 0)
    message = "none of the 2 training cases has a tumour in its seg file, so there is nothing to learn"
    with pytest.raises(InputError, match=message):
        train(config_of(cases, output_dir=tmp_path / "out"))
    assert not list((tmp_path / "out").glob("checkpoints/*.pth"))


@pytest.mark.slow
def test_a_sweep_without_any_tumour_is_refused(cases: Path, tmp_path: Path) -> None:
    keep(cases, (*TRAIN, *VAL), 0)
    done = voxtune("launch", "demo", "--data", cases, "--out", tmp_path / "run", "--trials", 1)
    assert done.returncode == 2
    assert "training cases has a tumour in its seg file, so there is nothing to learn" in done.stderr
    assert not (tmp_path / "run" / "study.yaml").exists()


def test_one_training_case_with_a_tumour_is_enough(cases: Path, caplog: pytest.LogCaptureFixture) -> None:
    keep(cases, TRAIN[:1], 0)
    data = prepared_of(cases)
    check_regions(data.folder, data.split)
    assert not caplog.records


def test_regions_that_no_case_of_a_part_has_are_said_in_one_line(cases: Path, caplog: pytest.LogCaptureFixture) -> None:
    keep(cases, TRAIN, 1)
    keep(cases, VAL, 0)
    data = prepared_of(cases)
    assert empty_regions(data.folder, data.split.train) == ["ET"]
    assert empty_regions(data.folder, data.split.val) == ["WT", "TC", "ET"]
    check_regions(data.folder, data.split)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == (
        "warning: ET in no training case, WT and TC and ET in no validation case, so the Dice of such a region says "
        "nothing"
    )


def test_a_split_without_validation_cases_has_no_warning_of_them(
    prepared: Data, caplog: pytest.LogCaptureFixture
) -> None:
    check_regions(prepared.folder, type(prepared.split)(prepared.split.train, (), ()))
    assert not caplog.records
