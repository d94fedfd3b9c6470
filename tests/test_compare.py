"""voxtune compare: trials of a run, and runs."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from synthetic_run import make_synthetic_run
from typer.testing import CliRunner

from trainable.core.errors import InputError
from trainable.core.logger import init_logger
from trainable.training.case_scores import read_case_scores
from tune.analysis.json_output.compare import CompareOutput
from tune.analysis.run_comparison import best_so_far, compare_runs
from tune.analysis.trial_comparison import compare_trials, differing
from tune.analysis.trial_rows import trial_rows
from tune.cli import app
from tune.run.results import Run, read_run

TIMES = ("started", "ended")


def compare(*words: object) -> Result:
    """Run the verb in this process."""
    init_logger()
    return CliRunner().invoke(app, ["compare", *map(str, words)])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of 60 trials; one of 30 as the same, one with other epochs, and one on a CPU."""
    base = tmp_path_factory.mktemp("compare")
    made = {
        "one": make_synthetic_run(base / "one", trials=60, cases=4, gpus=2),
        "fewer": make_synthetic_run(base / "fewer", trials=30, cases=4, gpus=4, overrides=["study.seed=1"]),
        "longer": make_synthetic_run(base / "longer", trials=20, cases=4, gpus=2, overrides=["train.epochs=50"]),
    }
    config = made["fewer"] / "study.yaml"
    text = config.read_text()
    assert "split: " in text
    one = (made["one"] / "study.yaml").read_text()
    split = next(line for line in one.splitlines() if line.strip().startswith("split: "))
    config.write_text("\n".join(split if line.strip().startswith("split: ") else line for line in text.splitlines()))
    return made


def test_two_trials_are_compared_case_by_case_at_their_best_epochs(folders: dict[str, Path]) -> None:
    run = read_run(folders["one"])
    first, second = (trial for trial in run.ranking[:2])
    found = compare_trials(run, [first.number, second.number])
    ours, theirs = (
        read_case_scores(run.dir.trial(trial.number).case_scores)[trial.best_epoch] for trial in (first, second)
    )
    (difference,) = found.differences
    per_case = np.array([ours[case]["dice_mean"] - theirs[case]["dice_mean"] for case in ours])
    mean = difference.differences["dice_mean"]
    assert mean.difference == pytest.approx(per_case.mean())
    assert mean.difference == pytest.approx((first.score or 0) - (second.score or 0))
    assert mean.low < mean.difference < mean.high
    assert (difference.cases, difference.better, difference.worse) == (4, (per_case > 0).sum(), (per_case < 0).sum())
    assert found.rungs == [5, 15, 45]
    done = compare(folders["one"], first.number, second.number)
    assert f"{mean.difference:+.4f} [{mean.low:+.4f}, {mean.high:+.4f}]" in done.stdout
    assert f"voxtune confirm {folders['one']}" in done.stdout
    assert max(map(len, done.stdout.splitlines()[:-1])) <= 80


def test_only_the_options_in_which_recipes_differ_are_shown() -> None:
    recipes = [{"lr": 0.1, "optimizer": "sgd", "momentum": 0.9}, {"lr": 0.1, "optimizer": "adam"}]
    assert differing(recipes) == {"optimizer": ("sgd", "adam"), "momentum": (0.9, None)}


def test_trials_without_scores_per_case_are_compared_all_the_same(folders: dict[str, Path]) -> None:
    run = read_run(folders["one"])
    failed = next(trial for trial in run.trials if trial.status == "failed")
    done = compare(folders["one"], 0, failed.number)
    assert done.exit_code == 0
    assert "no scores per case of both" in done.stdout


def test_a_sweep_is_not_compared_with_itself(folders: dict[str, Path]) -> None:
    with pytest.raises(InputError, match="one is given twice; expected different sweeps"):
        raise compare(folders["one"], folders["longer"], folders["one"].parent / "." / folders["one"].name).exception


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["3"], r"one trial, 3; expected two or more"),
        (["3", "3"], "have a number twice"),
        (["3", "999"], "has no trial 999"),
        (["nowhere"], "nowhere: no study.yaml there"),
        (["4", "nowhere"], "4 is the number of a trial, the others are folders of sweeps; expected trials of one"),
    ],
)
def test_what_cannot_be_compared_is_an_input_error(folders: dict[str, Path], words: list[str], message: str) -> None:
    done = compare(folders["one"], *words)
    assert isinstance(done.exception, InputError)
    assert message in str(done.exception)


def test_runs_of_one_protocol_are_compared_after_the_same_gpu_hours(folders: dict[str, Path]) -> None:
    """Their seeds differ, but the split is the same."""
    found = compare_runs([read_run(folders["one"]), read_run(folders["fewer"])])
    assert found.comparable
    assert set(found.search) == {"study.trials"}
    assert found.on_gpu
    assert found.hours[1] == pytest.approx(sum(trial.seconds for trial in found.runs[1].trials) / 3600)
    last = found.milestones[-1]
    assert last.hours == min(found.hours)
    shorter = found.hours.index(min(found.hours))
    assert last.best[shorter] == found.runs[shorter].best().score
    assert last.ahead == max((0, 1), key=lambda place: last.best[place] or 0.0)
    done = compare(folders["one"], folders["fewer"])
    assert "same data, split and protocol: yes" in done.stdout
    assert found.names[last.ahead or 0] in done.stdout.splitlines()[done.stdout.splitlines().index("") :][8]
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_runs_of_another_protocol_are_said_not_to_be_comparable_with_what_differs(folders: dict[str, Path]) -> None:
    done = compare(folders["one"], folders["longer"])
    assert "NO, scores cannot be compared; different are:" in done.stdout
    assert any(line.split() == ["train.epochs", "100", "50"] for line in done.stdout.splitlines())
    assert "ahead" not in done.stdout
    found = compare_runs([read_run(folders[name]) for name in ("one", "longer")])
    assert {item.ahead for item in found.milestones} == {None}
    assert math.isclose(found.milestones[0].hours * 4, min(found.hours))


def test_the_best_so_far_counts_finished_trials_in_the_order_in_which_they_ended(folders: dict[str, Path]) -> None:
    """What the trials beside one had spent by its end counts too."""
    run = read_run(folders["one"])
    ended = sorted(trial_rows(run), key=lambda row: row["ended"])
    hours, scores = zip(*best_so_far(run, on_gpu=True), strict=True)
    whole = np.array([row["gpu_hours"] for row in ended])
    begun, ends = (np.array([datetime.fromisoformat(row[name]).timestamp() for row in ended]) for name in TIMES)
    beside = [np.clip((end - begun[n:]) / 3600, 0, whole[n:]).sum() for n, end in enumerate(ends, 1)]
    assert list(hours) == pytest.approx(whole.cumsum() + beside, abs=0.001)
    assert max(beside) > 1
    finished = [row["score"] if row["status"] == "complete" else 0.0 for row in ended]
    assert [score or 0.0 for score in scores] == list(np.maximum.accumulate(finished))
    assert scores[-1] == run.best().score


def test_a_run_without_trials_can_be_compared(folders: dict[str, Path]) -> None:
    run = read_run(folders["one"])
    found = compare_runs([run, Run(run.dir, run.config, [])])
    assert found.hours[1] == 0
    assert [winner and winner.number for winner in found.winners] == [run.best().number, None]
    assert found.recipes == {}


def test_hours_are_of_training_if_a_run_has_no_gpu(folders: dict[str, Path]) -> None:
    run = read_run(folders["one"])
    on_cpu = replace(run, config=run.config.with_gpu(0))
    found = compare_runs([run, on_cpu])
    assert not found.on_gpu
    assert found.hours[0] == found.hours[1] == pytest.approx(sum(trial.seconds for trial in run.trials) / 3600)


def test_json_of_both_kinds_is_right_by_its_schema(folders: dict[str, Path]) -> None:
    trials = CompareOutput.model_validate(json.loads(compare(folders["one"], 0, 1, "--json").stdout))
    assert trials.runs is None
    assert trials.trials is not None
    assert [trial.number for trial in trials.trials.trials] == [0, 1]
    runs = CompareOutput.model_validate(json.loads(compare(folders["one"], folders["longer"], "--json").stdout))
    assert runs.trials is None
    assert runs.runs is not None
    assert runs.runs.meaning["train.epochs"] == [100, 50]
