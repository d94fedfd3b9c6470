"""The demo's folder, and what it says at its end; the demo itself is run by `make demo`."""

import json
from pathlib import Path

import pytest
from synthetic_run import make_synthetic_run

from trainable.core.errors import InputError
from tune.confirmation.status import VERSION
from tune.confirmation.verdict import Arm, Verdict
from tune.demo import found_lines, free_folder, run_demo
from tune.run.results import read_run


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


def test_the_end_names_the_default_recipe_as_the_baseline(tmp_path: Path):
    run = read_run(make_synthetic_run(tmp_path / "run", trials=6, space="demo"))
    winner, default = run.best(), run.default_trial
    assert default is not None
    lines = found_lines(run, 40, 0.51234, 3)
    assert lines[0] == f"in the sweep: trial {winner.number} scored {winner.score:.4f}, " + (
        f"the default recipe {default.score:.4f} (6 trials)"
    )
    assert lines[-1] == f"retrained for 40 epochs: trial {winner.number}, mean Dice 0.5123 on 3 test cases"
    arm = Arm("default", 3, {"dice_mean": 0.23456}, {"dice_mean": 0.01})
    verdict = Verdict("test", "dice_mean", "trial_0001", "default", "why", "seeds", {}, (arm,), "not shown").to_json()
    content = {"version": VERSION, "winner": winner.number, "arms": [], "seeds": [], "ended": "", "test": verdict}
    run.dir.confirm.path.mkdir()
    run.dir.confirm.result.write_text(json.dumps({**content, "validation": verdict}))
    expected = "the default recipe, trained as in the sweep, on the same cases: 0.2346 over 3 trainings"
    assert found_lines(run, 40, 0.5, 3)[-1] == expected
