"""What show prints of one trial: why it ended, what was needed at the rungs, its curve, its error."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from helpers import verb
from synthetic_run import make_synthetic_run

from trainable.core.errors import InputError
from tune.analysis.trial_detail import trial_detail
from tune.run.curves import trial_curve
from tune.run.results import Run, read_run
from tune.terminal.recipe_words import RecipeWords


def test_show_says_why_a_trial_was_stopped_and_what_was_needed(
    synthetic_sweep: Path, driven: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = next(trial for trial in driven.trials if trial.status == "stopped early" and len(trial.rungs) == 2)
    verb(["show", synthetic_sweep, stopped.number], monkeypatch)
    text = capsys.readouterr().out
    rung = stopped.rungs[15]
    assert f"stopped early at epoch 15 of 100: {rung.value:.4f}, {rung.needed:.4f} was needed" in text
    assert f"    15  {rung.value:.4f}  {rung.needed:.4f} {rung.among:>6}  stopped" in text
    for path in (driven.dir.trial(stopped.number).config, driven.dir.trial(stopped.number).stdout):
        assert str(path) in text
    assert f"epoch 15  val Dice {trial_curve(driven, stopped)[15]:.4f}".replace("  ", " ") in text
    detail = trial_detail(driven, stopped.number)
    assert set(detail.differing) == set(RecipeWords(driven).differing(stopped))
    with pytest.raises(InputError, match="has no trial 99"):
        trial_detail(driven, 99)


def test_show_says_why_a_trial_went_on_below_what_was_needed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = read_run(make_synthetic_run(tmp_path / "run", trials=60, cases=1))
    assert run.trials[0].kept == "default"
    verb(["show", run.folder, 0], monkeypatch)
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.endswith("  went on, as the default recipe is protected") for line in lines) >= 1
    assert max(len(line) for line in lines if str(run.folder) not in line) <= 80


def test_a_failed_trial_shows_its_error(tmp_path: Path) -> None:
    run = read_run(make_synthetic_run(tmp_path / "run", trials=8, failed_every=6, space="demo"))
    failed = next(trial for trial in run.trials if trial.status == "failed")
    detail = trial_detail(run, failed.number)
    assert detail.reason == f"failed at epoch 0 of 9: {failed.error}"
    assert detail.files["traceback"] == str(run.dir.trial(failed.number).error)
    assert detail.curve == {}


def test_the_curves_of_a_sweep_with_a_cost_are_read_from_its_files(tmp_path: Path) -> None:
    run = read_run(make_synthetic_run(tmp_path / "run", trials=4, space="demo"))
    trial = run.trials[0]
    objective = run.config.objective.model_copy(update={"metric": ["val_dice_mean", "seconds"]})
    with_cost = replace(run, config=run.config.model_copy(update={"objective": objective}))
    assert list(trial.intermediate) == list(range(1, 10))
    assert trial_curve(with_cost, replace(trial, intermediate={})) == pytest.approx(trial.intermediate)
