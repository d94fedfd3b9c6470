"""benchmarks/search_quality: the simulator against known answers, and what is run and kept."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr
from search_quality import checks
from search_quality.__main__ import chosen_stages, missing_tasks, read_results
from search_quality.arms import ARMS, AS_IT_WAS, STAGES, Stage
from search_quality.bench import brats_as_it_was
from search_quality.cases import HIGHEST, LOWEST, TRAININGS, cases_model
from search_quality.naming import by_best_window, by_last
from search_quality.recorded import matern
from search_quality.simulator import Training, sweep
from search_quality.synthetic import Hartmann, Line
from search_quality.table import holm, table_lines
from search_quality.unet import UNet


def test_an_arm_that_knows_the_best_has_no_regret() -> None:
    checks.check_oracle()


def test_random_draws_win_by_the_largest_one() -> None:
    checks.check_draws(seeds=5)


def test_no_rule_stops_the_best_where_scores_are_constant() -> None:
    checks.check_stopping(seeds=1)


def test_no_search_finds_more_than_the_best_of_a_surface() -> None:
    checks.check_best(seeds=1)


@pytest.mark.slow
def test_a_sweep_is_the_same_with_its_journal_on_disk() -> None:
    checks.check_journal()


def test_the_best_of_hartmann_is_1() -> None:
    bench = Hartmann(0, bias=2.5, noise=2.0)
    assert bench.final(bench.optimum) == pytest.approx(1.0, abs=1e-3)
    assert bench.curve(bench.optimum)[0] < 0.5  # early values are biased


def test_the_truth_of_a_surface_does_not_depend_on_the_shipped_yaml() -> None:
    """These figures were made before brats.yaml had poly and priors."""
    bench = UNet(0)
    assert brats_as_it_was().space.default_values() == bench.default
    assert (bench.best - bench.final(bench.default)) * 100 == pytest.approx(2.11, abs=0.01)
    assert (bench.best - bench.final(bench.start)) * 100 == pytest.approx(0.48, abs=0.01)


def test_winners_are_named_by_the_last_or_by_the_best_validations_in_a_row() -> None:
    def training(number: int, scores: list[float]) -> Training:
        return Training(number, {}, np.array(scores), 0.0, 4, scores=scores, ended="epochs")

    lucky, steady = training(0, [0.1, 0.9, 0.1, 0.1]), training(1, [0.5, 0.5, 0.5, 0.4])
    trainings = {0: lucky, 1: steady}
    assert by_last(3, trainings) == by_best_window(3, trainings) == 1
    assert by_best_window(1, trainings) == 0


def test_results_are_kept_and_not_run_again(tmp_path: Path) -> None:
    stages, path = [Stage("unet", 4, (8, 16), (AS_IT_WAS,))], tmp_path / "results.jsonl"
    tasks = list(missing_tasks(stages, range(2), read_results(path)))
    assert tasks == [("unet", 4, AS_IT_WAS, seed, (8, 16)) for seed in range(2)]
    record = {"marks": {"8": {"regret": 1.0}}, "seconds": 1.0, "default": 2.0, "start": 0.5}
    path.write_text(json.dumps([["unet", 4, AS_IT_WAS, 0], record]) + "\n")
    left = list(missing_tasks(stages, range(2), read_results(path)))
    assert left == [("unet", 4, AS_IT_WAS, 0, (16,)), ("unet", 4, AS_IT_WAS, 1, (8, 16))]
    assert any(line.startswith(AS_IT_WAS) for line in table_lines(read_results(path)))


def test_stages_are_chosen_by_name() -> None:
    assert chosen_stages([], [], None, []) == list(STAGES)
    assert all(stage.bench == "scan" for stage in chosen_stages(["scan"], [], None, []))
    assert chosen_stages(["line"], [AS_IT_WAS], 1, [8]) == [Stage("line", 1, (8,), (AS_IT_WAS,))]
    assert {arm for stage in STAGES for arm in stage.arms} <= set(ARMS)


def test_holm_leaves_what_is_sure_among_many() -> None:
    assert holm({"a": 0.001, "b": 0.04, "c": 0.03}) == {"a"}


def test_voxtune_as_it_was_beats_random_draws_on_a_line() -> None:
    line = Line(0)
    ours = [sweep(line, ARMS[AS_IT_WAS](line, seed), seed, 1, [8])["8"]["regret"] for seed in range(3)]
    theirs = [sweep(line, ARMS["random, no stopping"](line, s), s, 1, [8])["8"]["regret"] for s in range(3)]
    assert np.mean(ours) < np.mean(theirs)


@pytest.mark.slow
def test_the_process_over_whole_trainings_predicts_each_from_the_others() -> None:
    """Its fit takes a minute, once per machine."""
    model, trainings = cases_model(), [json.loads(line) for line in TRAININGS.open()]
    ends = np.array([training["curve"][-1] for training in trainings])
    known = np.clip(ends, LOWEST, HIGHEST)
    standard = (np.log(known / (1 - known)) - model["mean"][-1]) / model["sd"][-1]
    kernel = float(model["scale"]) * matern(model["points"], model["points"], model["lengths"])
    inverse = np.linalg.inv(kernel + 0.05 * np.eye(len(kernel)))
    without = standard - inverse @ standard / np.diag(inverse)  # each left out
    assert spearmanr(without, ends).statistic > 0.92
    good = ends > 0.6
    assert spearmanr(without[good], ends[good]).statistic > 0.75
