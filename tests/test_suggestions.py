"""`voxtune suggest`: a recipe for a sweep that runs or will be resumed."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import SPACE, start_voxtune, voxtune, wait_for

from trainable.core.errors import InputError
from trainable.data.prepare import Data
from tune.run.results import Run, read_run
from tune.run.run_dir import RunDir
from tune.run.suggestions import enqueue_suggestions, suggest_recipe
from tune.run.verify import verify
from tune.search.journal import Journal
from tune.spec.sweep_config import make_sweep_config
from tune.spec.sweep_file import dump

SGD = {"optimizer": "sgd", "lr": 0.01, "momentum": 0.95}


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    """A journal of a sweep of 4 trials, of which none has begun."""
    space = {
        "optimizer": {"choice": ["adam", "sgd"]},
        "lr": {"loguniform": [1e-5, 1e-1]},
        "momentum": {"uniform": [0.8, 0.99], "when": {"optimizer": "sgd"}},
    }
    config = make_sweep_config({"study": {"trials": 4}, "space": space})
    (tmp_path / "study.yaml").write_text(dump(config))
    journal = Journal(tmp_path, config)
    journal.enqueue_first([config.space.default_params()])
    return journal


def recipe(folder: Path, text: str = "optimizer: sgd\nlr: 1e-2\nmomentum: 0.95\nepochs: 7\n") -> Path:
    """A file of options."""
    path = folder / "mine.yaml"
    path.write_text(text)
    return path


def waiting(run: Run | RunDir) -> list[Path]:
    """The suggestions that no driver has taken."""
    paths = run.dir if isinstance(run, Run) else run
    return sorted(paths.suggestions.glob("*"))


def test_a_recipe_is_tried_next_after_those_that_were_enqueued(journal: Journal, tmp_path: Path) -> None:
    """What the file leaves out is at its default, and options that are no recipe are left out."""
    run = read_run(tmp_path)
    assert "tried when the sweep goes on" in suggest_recipe(run, recipe(tmp_path))
    suggest_recipe(run, recipe(tmp_path, "lr: 0.05\n"))
    assert len(waiting(run)) == 2
    asked = []
    for left in (2, 1, 0):
        enqueue_suggestions(run.dir, journal)
        assert len(waiting(run)) == left
        asked.append(journal.ask())
    assert asked == [(0, {"optimizer": "adam", "lr": 3e-4}), (1, SGD), (2, {"optimizer": "adam", "lr": 0.05})]
    assert journal.ask()[1] not in [values for _, values in asked]


def test_a_kill_between_the_journal_and_the_deletion_tries_a_recipe_once(journal: Journal, tmp_path: Path) -> None:
    run = read_run(tmp_path)
    suggest_recipe(run, recipe(tmp_path))
    [file] = waiting(run)
    text = file.read_text()
    journal.ask()
    enqueue_suggestions(run.dir, journal)
    for left in (1, 0, 0):  # still enqueued, then running
        file.write_text(text)
        enqueue_suggestions(run.dir, journal)
        assert len(waiting(run)) == left
        journal.ask()
    file.write_text(text)
    enqueue_suggestions(run.dir, Journal(tmp_path, journal.config))  # after a resume
    assert waiting(run) == []
    assert [trial.values for trial in read_run(tmp_path).trials].count(SGD) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr: 7\n", r"mine.yaml: lr is 7, outside its range 1e-05 to 0.1; widen the range, or leave lr out"),
        ("lr: 0.01\nmomentum: 0.95\n", r"momentum is 0.95, but it is not searched in this recipe"),
        ("scheduler: poly\n", r"scheduler is poly, but each trial has the default plateau"),
        ("learning_rate: 1\n", r"unknown option 'learning_rate'"),
        ("[1, 2]", r"expected options"),
    ],
)
def test_a_recipe_outside_the_space_is_refused_at_once(
    journal: Journal, tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        suggest_recipe(read_run(tmp_path), recipe(tmp_path, text))
    assert not RunDir(tmp_path).suggestions.exists()


def test_a_recipe_that_a_trial_has_is_refused(journal: Journal, tmp_path: Path) -> None:
    journal.ask()
    with pytest.raises(InputError, match=r"mine.yaml: trial 0 has this recipe already \(interrupted\)"):
        suggest_recipe(read_run(tmp_path), recipe(tmp_path, "optimizer: adam\n"))


def test_a_file_that_a_hand_has_spoiled_is_put_aside(journal: Journal, tmp_path: Path) -> None:
    paths = RunDir(tmp_path)
    paths.suggestions.mkdir()
    (paths.suggestions / "1.yaml").write_text("lr: [")
    (paths.suggestions / "2.yaml").write_text("lr: 7\n")
    (paths.suggestions / "3.yaml").write_text("lr: 0.05\n")
    assert journal.ask()[1]["lr"] == 3e-4
    enqueue_suggestions(paths, journal)
    assert [path.name for path in waiting(paths)] == ["1.refused", "2.refused"]
    assert journal.ask()[1]["lr"] == 0.05


def test_a_sweep_without_trials_left_says_how_the_recipe_is_tried(journal: Journal, tmp_path: Path) -> None:
    for _ in range(4):
        journal.ask()
    text = suggest_recipe(read_run(tmp_path), recipe(tmp_path))
    assert text == f"mine: all 4 trials have been started; to try it: voxtune resume {tmp_path} --trials 5"


@pytest.mark.slow
def test_a_running_sweep_tries_the_recipe_next_and_a_resumed_one_too(
    tmp_path: Path, phantoms: Path, prepared: Data
) -> None:
    space, run_dir = tmp_path / "space.yaml", tmp_path / "run"
    space.write_text(SPACE.replace("space:", "start: [{lr: 1e-3}]\nspace:"))
    process = start_voxtune(
        "launch", space, "--data", phantoms, "--out", run_dir, "--set", f"train.cache_dir={prepared.folder}"
    )
    wait_for(process, lambda: (run_dir / "trials" / "0000" / "metrics.csv").exists())
    suggested = voxtune("suggest", run_dir, recipe(tmp_path))
    assert suggested.returncode == 0, suggested.stderr
    assert suggested.stdout == "mine: tried as soon as a trial can start, before drawn recipes\n"
    assert voxtune("suggest", run_dir, recipe(tmp_path, "lr: 7\n")).returncode == 2
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    run = read_run(run_dir)
    assert len(run.trials) == 5
    start = {"optimizer": "adam", "lr": 1e-3, "loss_weights": [1.0, 1.0]}
    assert [trial.values for trial in run.trials[1:3]] == [start, {**SGD, "loss_weights": [1.0, 1.0]}]
    assert not any(verify(run).values())
    assert voxtune("suggest", run_dir, recipe(tmp_path, "lr: 0.02\n")).stdout.endswith("--trials 6\n")
    resumed = voxtune("resume", run_dir, "--trials", 6)
    assert resumed.returncode == 0, resumed.stderr
    assert read_run(run_dir).trials[5].values["lr"] == 0.02
    assert waiting(read_run(run_dir)) == []
