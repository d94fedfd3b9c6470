"""The demo's folder; the demo itself is run by `make demo`."""

from pathlib import Path

import pytest

from trainable.core.errors import InputError
from tune.demo import free_folder, run_demo


def test_a_second_demo_gets_a_new_folder(tmp_path: Path):
    wanted = tmp_path / "voxtune_demo"
    for name in ("voxtune_demo", "voxtune_demo_2", "voxtune_demo_3"):
        assert free_folder(wanted) == tmp_path / name
        (tmp_path / name).mkdir()


def test_a_folder_in_use_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="exists; take another --out"):
        run_demo(tmp_path)


@pytest.mark.parametrize("trials", [0, -1])
def test_no_trials_are_refused_before_anything_is_written(tmp_path: Path, trials: int):
    with pytest.raises(InputError, match=rf"study.trials is {trials}; expected a whole number >= 1"):
        run_demo(tmp_path / "new", trials)
    assert list(tmp_path.iterdir()) == []
