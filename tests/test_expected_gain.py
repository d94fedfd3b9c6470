"""What more trials would bring, and a sweep that ends by itself when that is too little."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import SWEEP, voxtune
from optuna.trial import TrialState
from synthetic_run import make_synthetic_run

from trainable.core.errors import InputError
from tune.analysis.json_output.status import status_output
from tune.analysis.outlook import outlook, outlook_lines
from tune.analysis.trial_rows import trial_rows
from tune.run.expected_gain import ended_as_asked, enough_reached, expected_gain, gain_of, trials_since_best
from tune.run.results import Run, read_run
from tune.run.run_dir import RunDir
from tune.spec.sweep_config import make_sweep_config


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A sweep of 60 trials that has ended."""
    return read_run(make_synthetic_run(tmp_path_factory.mktemp("gain") / "run", trials=60, cases=1))


def with_enough(run: Run, enough: float | None) -> Run:
    """The run with study.enough."""
    budget = run.config.budget.model_copy(update={"enough": enough})
    return replace(run, config=run.config.model_copy(update={"budget": budget}))


@pytest.mark.parametrize("tried", [12, 24, 48])
@pytest.mark.parametrize("tail", ["normal", "left-skewed", "with a limit"])
def test_the_expected_gain_is_about_what_comes_on_average(tail: str, tried: int) -> None:
    """150 sweeps whose worse half was stopped; the next 8 trials are known."""
    rng, expected, came, inside = np.random.default_rng(0), [], [], 0
    for _ in range(150):
        count = tried + 8
        scores = {
            "normal": rng.normal(0.7, 0.05, count),
            "left-skewed": 0.75 - 0.07 * rng.gumbel(size=count),
            "with a limit": 0.5 + 0.3 * rng.beta(2, 2, count) + rng.normal(0, 0.01, count),
        }[tail]
        finished = np.sort(scores[:tried])[tried // 2 :]
        gain = gain_of(finished.tolist(), tried)
        assert gain is not None
        actual = max(0.0, scores[tried:].max() - scores[:tried].max())
        expected.append(gain.mean)
        came.append(actual)
        inside += gain.low <= actual <= gain.high
    assert 0.6 < np.mean(expected) / np.mean(came) < 2.5
    assert inside >= 0.7 * 150


def test_the_more_trials_there_were_the_less_the_next_ones_bring() -> None:
    scores = [0.7, 0.72, 0.74, 0.75, 0.755]
    few, many = gain_of(scores, 8), gain_of(scores, 80)
    assert few is not None
    assert many is not None
    assert few.mean > 3 * many.mean
    assert many.low == 0


def test_nothing_is_expected_before_some_trials_have_finished_or_beyond_a_dice_of_1() -> None:
    assert gain_of([0.5, 0.6, 0.7], 20) is None
    gain = gain_of([0.5, 0.6, 0.9, 0.999], 4)
    assert gain is not None
    assert gain.high <= 0.001 + 1e-9


def test_trials_since_the_best_are_those_that_ended_after_it(ended: Run, tmp_path: Path) -> None:
    """Without events, those that began after it."""
    best, told = ended.best().number, (TrialState.COMPLETE, TrialState.PRUNED)
    ends = {row["number"]: row["ended"] for row in trial_rows(ended)}
    later = [trial.number for trial in ended.trials if trial.state in told and ends[trial.number] > ends[best]]
    began_later = [trial.number for trial in ended.trials if trial.state in told and trial.number > best]
    assert trials_since_best(ended) == len(later) < len(began_later)
    assert trials_since_best(replace(ended, trials=[])) == 0
    assert trials_since_best(replace(ended, dir=RunDir(tmp_path))) == len(began_later)


def test_enough_ends_a_sweep_only_if_less_is_expected_after_eight_trials(ended: Run) -> None:
    gain = expected_gain(ended)
    assert gain is not None
    assert enough_reached(ended) == ""
    assert enough_reached(with_enough(ended, gain.mean / 2)) == ""
    reason = enough_reached(with_enough(ended, 2 * gain.mean))
    assert reason == (
        f"study.enough: another 8 trials are expected to bring {gain.text()}, less than {2 * gain.mean:g}"
    )
    assert ended_as_asked(with_enough(ended, 2 * gain.mean))
    first = replace(ended, trials=ended.trials[:5])
    assert enough_reached(with_enough(first, 1.0)) == ""


def test_a_running_trial_is_waited_for_only_above_the_best_score_of_a_finished_one(ended: Run) -> None:
    run = with_enough(ended, 1.0)
    (highest, other) = sorted((t for t in run.trials if t.finished), key=lambda t: -(t.score or 0.0))[:2]
    assert highest.score is not None
    assert other.score is not None
    going = replace(run.trials[-1], state=TrialState.RUNNING, score=(highest.score + other.score) / 2, end_reason="")
    assert enough_reached(replace(run, trials=[*run.trials[:-1], going]))


def test_a_running_trial_above_the_best_is_waited_for(ended: Run) -> None:
    run = with_enough(ended, 1.0)
    assert enough_reached(run)
    score = (run.best().score or 0.0) + 0.01
    going = replace(run.trials[-1], state=TrialState.RUNNING, score=score, end_reason="")
    assert enough_reached(replace(run, trials=[*run.trials[:-1], going])) == ""


@pytest.mark.parametrize("value", [0, -0.1, 2, "much"])
def test_an_enough_that_is_no_gain_of_dice_is_refused(value: object) -> None:
    with pytest.raises(InputError, match=r"study\.enough is .*; expected"):
        make_sweep_config({**SWEEP, "study": {"enough": value}})


def test_status_says_where_the_winner_is_and_what_more_trials_bring(ended: Run) -> None:
    winner = ended.best()
    at_end = replace(winner, values={**winner.values, "lr": 1e-2})
    run = replace(ended, trials=[at_end if trial is winner else trial for trial in ended.trials])
    low, high = next(p.kind.to_list() for p in run.config.space.parameters if p.name == "lr")[:2]
    at_end = replace(winner, values={**winner.values, "lr": high})
    run = replace(ended, trials=[at_end if trial is winner else trial for trial in ended.trials])
    edge, gain = outlook_lines(run)
    assert edge.startswith(f"the winner is at the high end of lr ({high:.2g}): better values may lie beyond; ")
    assert "another 8 trials are expected to bring about +" in gain
    document = status_output(run)
    assert document.winner_at_edge == list(outlook(run).edges)
    assert "lr" in document.winner_at_edge
    assert document.expected_gain is not None
    assert document.trials_since_best == trials_since_best(run)
    assert low < high


@pytest.mark.slow
def test_a_sweep_with_enough_ends_by_itself_and_can_be_resumed_without(phantoms: Path, tmp_path: Path) -> None:
    from helpers import SPACE

    space, run = tmp_path / "space.yaml", tmp_path / "run"
    space.write_text(SPACE.replace("trials: 5, seed: 1", "trials: 12, seed: 1, enough: 0.99"))
    done = voxtune("launch", space, "--data", phantoms, "--out", run)
    assert done.returncode == 0, done.stderr
    assert "stopped by study.enough: another 8 trials are expected to bring about +" in done.stdout
    assert "--set study.KEY=VALUE" in done.stdout
    count = len(read_run(run).own_trials)
    assert 4 <= count < 12
    again = voxtune("resume", run, "--set", "study.enough=null", "--trials", count + 2)
    assert again.returncode == 0, again.stderr
    assert len(read_run(run).own_trials) == count + 2
    assert not read_run(run).unfinished
