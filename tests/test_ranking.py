"""Which trial is named the winner: by the mean of its last validations, or by its best one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers import make_report

from tune.run.ranking import rank
from tune.run.results import Run, TrialResult
from tune.run.run_dir import RunDir
from tune.search.journal import Journal
from tune.search.trial_progress import Progress, late_validations
from tune.spec.sweep_config import SweepConfig, make_sweep_config, to_sections
from tune.terminal.tables import dice_table

LUCKY = (0.2, 0.9, 0.5, 0.5, 0.5, 0.5, 0.6, 0.6)
STEADY = (0.2, 0.5, 0.6, 0.7, 0.7, 0.7, 0.8, 0.7)


def config_of(**study: Any) -> SweepConfig:
    train = {"epochs": 16, "val_freq": 2}
    stopping = {"type": "none", "grace_period": 2}
    space = {"lr": {"loguniform": [1e-4, 1e-2]}}
    return make_sweep_config({"study": study, "train": train, "early_stopping": stopping, "space": space})


def run_of(folder: Path, config: SweepConfig, *curves: tuple[float, ...]) -> Run:
    """A run whose trials have these validated scores; the last one is not finished if it is shorter."""
    journal = Journal(folder, config)
    for curve in curves:
        number, _ = journal.ask()
        for index, score in enumerate(curve):
            ends = "epochs" if index == len(STEADY) - 1 else ""
            journal.record(number, make_report(2 * index + 2, score, max(curve[: index + 1]), ends))
        if len(curve) == len(STEADY):
            journal.tell(number)
    return Run(RunDir(folder), config, [TrialResult.from_frozen(frozen, config) for frozen in journal.trials()])


@pytest.mark.parametrize(("rank_by", "winner"), [("late", 1), ("best", 0)])
def test_a_single_lucky_validation_wins_only_if_trials_are_ranked_by_their_best_one(
    tmp_path: Path, rank_by: str, winner: int
) -> None:
    run = run_of(tmp_path, config_of(rank_by=rank_by), LUCKY, STEADY)
    assert run.best().number == winner
    assert [trial.score for trial in run.trials] == [0.9, 0.8]
    assert [trial.late_score for trial in run.trials] == pytest.approx([0.6, 0.75])


def test_a_trial_that_still_runs_comes_after_those_that_trained_to_their_end(tmp_path: Path) -> None:
    run = run_of(tmp_path, config_of(), LUCKY, STEADY, (0.95, 0.96))
    assert [trial.number for trial in run.ranking] == [1, 0, 2]


def test_the_late_score_is_of_the_last_quarter_of_the_validations_and_of_one_at_least() -> None:
    assert late_validations(config_of()) == 2
    short = {"train": {"epochs": 2}, "space": {"lr": {"loguniform": [1e-4, 1e-2]}}}
    assert late_validations(make_sweep_config(short)) == 1


def test_a_run_that_began_before_there_was_a_choice_keeps_its_winner() -> None:
    sections = to_sections(config_of())
    del sections["study"]["rank_by"]
    assert make_sweep_config({**sections, "record": {"study": "old"}}).objective.rank_by == "best"
    assert config_of().objective.rank_by == "late"


def test_no_trial_is_ranked_by_its_late_score_if_one_has_none(tmp_path: Path) -> None:
    run = run_of(tmp_path, config_of(), LUCKY, STEADY)
    trials = [run.trials[0], replace(run.trials[1], late_score=None)]
    assert [trial.number for trial in rank(trials, run.config)] == [0, 1]


@pytest.mark.parametrize("metric", ["val_dice_mean", ["val_dice_mean", "seconds"]])
def test_the_winner_is_on_the_pareto_front_and_alone_on_it_without_a_cost(tmp_path: Path, metric: Any) -> None:
    run = run_of(tmp_path, config_of(metric=metric), LUCKY, STEADY)
    assert run.best().number == 1
    assert run.pareto_front()[-1].number == 1
    assert isinstance(metric, list) or len(run.pareto_front()) == 1


def test_of_a_long_training_in_a_sweep_with_a_cost_the_scores_of_its_last_quarter_are_kept() -> None:
    train, stopping = {"epochs": 200, "val_freq": 2}, {"type": "none"}
    long = {"train": train, "early_stopping": stopping, "space": {"lr": {"loguniform": [1e-4, 1e-2]}}}
    progress, config = Progress(), make_sweep_config(long)
    for epoch in range(2, 201, 2):
        progress = progress.with_recent(epoch, epoch / 200, config)
    assert list(progress.recent) == list(range(152, 201, 2))


@pytest.mark.parametrize("rank_by", ["late", "best"])
def test_the_table_of_the_best_trials_shows_what_they_are_ranked_by(tmp_path: Path, rank_by: str) -> None:
    run = run_of(tmp_path, config_of(rank_by=rank_by), LUCKY, STEADY, (0.95, 0.96))
    lines = [line.plain for line in dice_table(run, run.ranking, 80)]
    assert ("late" in lines[0].split()) == (rank_by == "late")
    assert ("0.7500" in lines[1]) == (rank_by == "late")
    assert all(len(line) <= 80 for line in lines)
    assert "lr" in lines[1], lines
