"""From a config to prepared, split cases."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from trainable.core.config import TrainConfig
from trainable.core.errors import InputError
from trainable.data.prepare import Data, prepare_data
from trainable.data.split import Split, save_split


def test_cases_of_data_dir_are_prepared_in_cache_dir(phantoms: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(phantoms, data)
    shutil.rmtree(data / "Phantom_00007")
    result = prepare_data(TrainConfig(data_dir=data, cache_dir=tmp_path / "elsewhere"), quiet=True)
    assert result.folder == tmp_path / "elsewhere"
    names = {path.name for path in result.folder.iterdir()}
    assert names == {f"Phantom_{number:05}" for number in range(7)}
    assert set(result.split.train + result.split.val + result.split.test) == names


def test_bad_cases_are_refused_or_left_out_and_listed(phantoms: Path, prepared: Data, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(phantoms, data)
    (data / "Phantom_00001" / "Phantom_00001_t2.nii.gz").unlink()
    with pytest.raises(InputError, match=r"1 of 8 cases cannot be used; .* --skip_bad_cases:\n  Phantom_00001: "):
        prepare_data(TrainConfig(data_dir=data, cache_dir=prepared.folder), quiet=True)
    result = prepare_data(TrainConfig(data_dir=data, cache_dir=prepared.folder, skip_bad_cases=True), quiet=True)
    assert len(result.skipped) == 1
    assert "Phantom_00001" not in result.split.train + result.split.val + result.split.test


def test_split_file_says_which_case_is_for_what(phantoms: Path, prepared: Data, tmp_path: Path) -> None:
    split = {"train": ["Phantom_00001", "Phantom_00003"], "val": ["Phantom_00000"], "test": ["Phantom_00006"]}
    (tmp_path / "split.json").write_text(json.dumps(split))
    config = TrainConfig(data_dir=phantoms, cache_dir=prepared.folder, split_file=tmp_path / "split.json")
    result = prepare_data(config, quiet=True).split
    assert {part: list(getattr(result, part)) for part in split} == split


def test_missing_data_dir_is_reported() -> None:
    with pytest.raises(InputError, match="--data_dir is missing"):
        prepare_data(TrainConfig(), quiet=True)


def test_a_fold_without_folds_is_refused_before_cases_are_prepared(phantoms: Path, tmp_path: Path) -> None:
    config = TrainConfig(data_dir=phantoms, cache_dir=tmp_path / "cache", fold=2)
    with pytest.raises(InputError, match="fold is 2, but folds is 0: there are no folds; give their number with folds"):
        prepare_data(config, quiet=True)
    assert not (tmp_path / "cache").exists()


def test_cases_that_a_split_file_does_not_name_are_said(
    phantoms: Path, prepared: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two, *others = prepared.split.names
    save_split(Split((one,), (two,), ()), tmp_path / "split.json")
    config = TrainConfig(data_dir=phantoms, cache_dir=prepared.folder, split_file=tmp_path / "split.json")
    prepare_data(config)
    left_out = f"left out: {len(others)} cases in {phantoms} that {tmp_path}/split.json does not name: {others[0]}, "
    assert left_out in capsys.readouterr().err
