"""Which options matter: standings, shares and their intervals, and what is said with too few trials."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import SWEEP, voxtune_here
from optuna.trial import TrialState
from synthetic_run import make_synthetic_run

from tune.analysis.importance import Importances, explain, importances, trend_chance
from tune.analysis.option_range import find_edge, part_labels, part_of, widen
from tune.analysis.standing import comparable, measure_standings
from tune.run.results import Run, TrialResult, read_run
from tune.run.run_dir import RunDir
from tune.search.asha import CONTINUE, STOP, RungDecision
from tune.spec.kinds import LogUniform, QUniform, RandInt, Uniform
from tune.spec.parameter import Branch, Parameter
from tune.spec.sweep_config import make_sweep_config
from tune.terminal.importance_lines import good_text, share_lines


def make_trial(number: int, score: float | None, **changes: Any) -> TrialResult:
    """A trial that trained to its end, with changes."""
    trial = TrialResult(number, TrialState.COMPLETE, "epochs", score, 9, 9, {}, {}, 1.0, None, "")
    return replace(trial, **changes)


def stopped(number: int, **values: float) -> TrialResult:
    """A trial that was stopped at the last of the rungs at which it had these values, such as rung_1=0.2."""
    rungs = {int(name.removeprefix("rung_")): RungDecision(value, CONTINUE) for name, value in values.items()}
    last = max(rungs)
    rungs[last] = RungDecision(rungs[last].value, STOP)
    return make_trial(number, rungs[last].value, state=TrialState.PRUNED, end_reason="", epoch=last, rungs=rungs)


def finished(number: int, score: float, **values: float) -> TrialResult:
    """A trial that trained to its end, past rungs at which it had these values."""
    rungs = {int(name.removeprefix("rung_")): RungDecision(value, CONTINUE) for name, value in values.items()}
    return make_trial(number, score, rungs=rungs)


def test_trials_are_compared_at_the_last_rung_that_both_have_reached() -> None:
    """A slow starter that was stopped late is better than the stopped one that it was behind at no rung."""
    trials = [
        finished(0, 0.9, rung_1=0.3, rung_3=0.5),
        finished(1, 0.6, rung_1=0.2, rung_3=0.4),
        stopped(2, rung_1=0.25, rung_3=0.3),
        stopped(3, rung_1=0.26),
    ]
    # 0 beats all; 1 beats 2 at rung 3 and loses to 3 at rung 1, where 3 also beats 2.
    assert measure_standings(trials) * 3 == pytest.approx([3, 1, 0, 2])


def test_a_protected_trial_is_not_above_those_that_were_better_at_each_rung() -> None:
    kept = finished(0, 0.12, rung_1=0.1)
    kept = replace(kept, rungs={1: RungDecision(0.1, CONTINUE, "default")})
    assert list(measure_standings([kept, stopped(1, rung_1=0.5)])) == [0, 1]


def test_a_diverged_trial_is_beaten_by_all_and_ties_are_half() -> None:
    ends = {"state": TrialState.PRUNED, "end_reason": "non_finite"}
    diverged = [make_trial(number, score, **ends) for number, score in ((0, 0.9), (1, None))]
    trials = [*diverged, finished(2, 0.5), finished(3, 0.5), finished(4, 0.4)]
    assert measure_standings(trials) * 4 == pytest.approx([0.5, 0.5, 3.5, 3.5, 2])


@pytest.mark.parametrize(
    "changes",
    [
        {"state": TrialState.RUNNING, "end_reason": ""},
        {"state": TrialState.FAIL, "end_reason": ""},
        {"end_reason": "oom"},
        {"outside_space": "lr"},
    ],
)
def test_what_says_nothing_of_a_recipe_is_left_out(changes: dict[str, Any]) -> None:
    assert comparable(make_trial(0, 0.5))
    assert not comparable(make_trial(0, 0.5, **changes))


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Importances]:
    """A run of 120 trials whose scores depend on lr and optimizer only, most of them stopped early."""
    run = make_synthetic_run(tmp_path_factory.mktemp("importance") / "run", trials=120, cases=2, gpus=4)
    return run, importances(read_run(run))


def test_the_options_that_scores_depend_on_come_out_on_top_and_no_other(found: tuple[Path, Importances]) -> None:
    _, result = found
    assert [option.name for option in result.options if option.verdict == "matters"] == ["lr", "optimizer"]
    assert result.left_out == {"failed": 2, "out of memory": 2}
    assert result.trials == 116
    lr, optimizer, *others = result.options
    assert 0.3 < (lr.low or 0) < (lr.share or 0) < (lr.high or 0) < 0.9
    assert lr.good is not None
    assert 1e-4 < lr.good[0] < lr.good[1] < 0.03
    assert sum(part.tries for part in optimizer.tries) == 120
    assert max(option.share or 0 for option in others) < 0.2


def test_if_nothing_matters_it_is_told_where_the_best_trials_lie(found: tuple[Path, Importances]) -> None:
    _, result = found
    unknown = replace(result, options=tuple(replace(option, verdict="too few trials") for option in result.options))
    lines = list(share_lines(unknown))
    at = lines.index("  none can be told from chance")
    assert lines[at + 1] == "where most of the best quarter of the trials lies:"
    lr = next(line for line in lines[at + 2 :] if line.split()[0] == "lr")
    assert lr.split(maxsplit=1)[1] == good_text(result.options[0].good or ())
    assert not any(line.split()[0] == "optimizer" for line in lines[at + 2 :]), "which is no number"
    assert "best quarter" not in "\n".join(share_lines(result))


def sample(trials: int, seed: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Standings by lr, whose optimum depends on the optimizer; and the groups of these two and of 18 other options."""
    rng = np.random.default_rng(seed)
    lr, optimizer = rng.uniform(-5, -1.5, trials), rng.integers(3, size=trials)
    score = -np.abs(lr - np.array([-3, -2.8, -2])[optimizer]) + rng.normal(0, 0.05, trials)
    groups = {f"noise_{k}": rng.integers(2 + k % 4, size=trials) for k in range(18)}
    ranges = max(2, min(8, trials // 10))
    groups |= {"lr": np.searchsorted(np.quantile(lr, np.arange(1, ranges) / ranges), lr), "optimizer": optimizer}
    return np.argsort(np.argsort(score)) / (trials - 1), groups


def test_forty_trials_find_the_two_options_of_twenty_and_rarely_claim_another() -> None:
    """Over 40 sweeps: in at most 4 another one is said to matter, which is to happen in 1 of 20."""
    claims = []
    for seed in range(40):
        shares = explain(*sample(40, seed))
        claims.append({name for name, share in shares.items() if share.matters})
    assert sum("lr" in claim for claim in claims) >= 38
    assert sum("optimizer" in claim for claim in claims) >= 34
    assert sum(bool(claim - {"lr", "optimizer"}) for claim in claims) <= 4


def test_options_that_are_never_active_together_are_judged_each_alone() -> None:
    standings = np.linspace(0, 1, 60)
    groups = {
        "momentum": np.where(np.arange(60) < 40, np.arange(60) // 20, -1),
        "beta": np.where(np.arange(60) < 40, -1, np.arange(60) % 2),
    }
    shares = explain(standings, groups)
    assert [share.matters for share in shares.values()] == [True, False]
    assert shares["momentum"].share == pytest.approx(0.75, abs=0.02)


def test_an_interval_has_the_share_that_many_trials_show_nine_times_of_ten() -> None:
    truth = explain(*sample(3000, 0))["lr"].share
    intervals = [explain(*sample(100, seed))["lr"] for seed in range(30)]
    assert sum(share.low <= truth <= share.high for share in intervals) >= 24


def test_four_complete_trials_claim_nothing(tmp_path: Path) -> None:
    """As a new user saw it: four complete trials, of which Optuna said that tversky_alpha explains 0.68."""
    run = make_synthetic_run(tmp_path / "run", trials=6, cases=2, gpus=2, failed_every=0)
    result = importances(read_run(run))
    assert not result.enough
    assert {option.verdict for option in result.options} == {"too few trials"}
    assert {option.share for option in result.options} == {None}
    done = voxtune_here("importance", run)
    assert "6 trials compared" in done.stdout
    assert "too few trials to tell what matters: at least 20 are needed" in done.stdout


def test_a_run_without_trials_has_importances() -> None:
    run = Run(RunDir(Path("none")), make_sweep_config(SWEEP), [])
    result = importances(run)
    assert (result.trials, result.enough) == (0, False)
    assert [option.never_tried for option in result.options if option.name == "optimizer"] == [["adam", "sgd"]]


@pytest.mark.slow
def test_a_thousand_trials_take_less_than_two_seconds(tmp_path: Path) -> None:
    run = read_run(make_synthetic_run(tmp_path / "run", trials=1000, cases=1))
    importances(run)  # imports scipy
    start = time.process_time()
    importances(run)
    assert time.process_time() - start < 2


def test_numbers_are_counted_by_thirds_in_their_own_scale_and_a_few_values_each() -> None:
    lr = LogUniform(1e-5, 1e-2)
    assert part_labels(lr) == ["1e-05 to 0.0001", "0.0001 to 0.001", "0.001 to 0.01"]
    assert [part_of(lr, value) for value in (1e-5, 0.9e-4, 1.1e-4, 9e-4, 1.1e-3, 1e-2)] == [0, 0, 1, 1, 2, 2]
    assert part_labels(QUniform(0.0, 0.3, 0.1)) == ["0", "0.1", "0.2", "0.3"]
    assert part_of(QUniform(0.0, 0.3, 0.1), 0.2) == 2
    assert part_labels(RandInt(1, 10)) == ["1 to 4", "4 to 7", "7 to 10"]


def test_a_winner_at_an_edge_is_told_with_a_range_that_goes_on_as_far_as_the_option_allows() -> None:
    lr = Parameter("lr", (Branch(LogUniform(1e-5, 1e-1)),))
    none = np.empty(0)
    assert find_edge(lr, lr.branches[0], 1e-3, [], none) is None
    edge = find_edge(lr, lr.branches[0], 0.09, [], none)
    assert edge is not None
    assert (edge.side, edge.wider) == ("high", {"loguniform": [1e-5, 1.0]})
    momentum = Parameter("momentum", (Branch(Uniform(0.8, 0.95), {"optimizer": ("sgd",)}),))
    edge = find_edge(momentum, momentum.branches[0], 0.95, [], none)
    assert edge is not None
    assert edge.wider == {"uniform": [0.8, 0.99], "when": {"optimizer": ["sgd"]}}
    assert widen("dropout", QUniform(0.0, 0.3, 0.1), "high") == [0.0, 0.4, 0.1]
    dropout = Parameter("dropout", (Branch(QUniform(0.0, 0.3, 0.1)),))
    assert find_edge(dropout, dropout.branches[0], 0.0, [], none) is None  # no option below 0
    assert widen("plateau_patience", RandInt(1, 10), "high") == [1, 12]


def test_the_best_trials_pile_up_at_an_edge_also_if_the_winner_is_not_there() -> None:
    lr = Parameter("lr", (Branch(LogUniform(1e-5, 1e-1)),))
    low, high = [10 ** (-5 + 0.05 * step) for step in range(60)], [0.05, 0.06, 0.07, 0.08, 0.085, 0.09, 0.095]
    values = [*low, *high]
    edge = find_edge(lr, lr.branches[0], 1e-3, values, np.arange(len(values), dtype=float))
    assert edge is not None
    assert (edge.side, edge.value, edge.piled) == ("high", None, (0.05, 0.095))
    edge = find_edge(lr, lr.branches[0], 1e-3, values, -np.arange(len(values), dtype=float))
    assert edge is not None
    assert edge.side == "low"
    rng = np.random.default_rng(0)
    spread = [10 ** rng.uniform(-5, -1) for _ in range(80)]
    assert not any(find_edge(lr, lr.branches[0], 1e-3, spread, rng.random(80)) for _ in range(50))
    assert not any(
        find_edge(lr, lr.branches[0], 1e-3, [0.09] * 80, rng.random(80)) for _ in range(50)
    )  # as often as the others


def test_a_trend_over_trials_that_crowd_at_good_numbers_is_found_and_noise_is_not() -> None:
    """As TPE draws them: the ranges of the analysis of variance are then narrow, and blur the trend."""
    rng = np.random.default_rng(0)
    ranks = np.arange(100, dtype=float)
    assert trend_chance(0.004 * ranks + rng.normal(0, 0.25, 100), ranks) < 1e-4
    chances = [trend_chance(rng.normal(0, 1, 100), ranks) for _ in range(400)]
    assert 0.02 < np.mean(np.array(chances) < 0.05) < 0.08
    assert trend_chance(ranks, np.full(100, np.nan)) == trend_chance(np.ones(100), ranks) == 1.0


def test_the_verb_fits_80_columns_and_names_what_was_never_tried(found: tuple[Path, Importances]) -> None:
    run, result = found
    done = voxtune_here("importance", run)
    assert done.returncode == 0, done.stderr
    text = done.stdout.partition("voxtune resume")[0]  # the command has the path of the run
    assert max(map(len, text.splitlines())) <= 80
    lr = result.options[0]
    assert f"{lr.share:.2f} [{lr.low:.2f}, {lr.high:.2f}]" in done.stdout
    assert "never tried: " in done.stdout
    assert "where the best quarter of the trials lies:\n  lr " in done.stdout
