"""What a run says of its stops, against sweeps whose curves are complete, so that the truth is known."""

from __future__ import annotations

import math
import os
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import make_report, report_all, start_journal
from scipy.stats import binomtest, spearmanr

from tune.analysis.stop_audit import (
    StopAudit,
    audit_lines,
    audit_stops,
    correlation_line,
    weighted_spearman,
    wilson_interval,
)
from tune.run.results import read_run
from tune.terminal.status import print_status

BENCHMARK = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "stop_audit.py"), run_name="stop_audit")


def sweep(tmp_path: Path, share: float, *, trials: int = 30, seed: int = 0) -> Any:
    config = BENCHMARK["make_config"](trials, seed, {"grace_period": 1, "reduction_factor": 3, "audit": share})
    return BENCHMARK["run_sweep"](tmp_path / "run", config, BENCHMARK["draw_curves"](trials, seed))


@pytest.mark.slow
def test_the_printed_share_of_false_stops_is_the_true_one_within_its_interval(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """20 sweeps; docs/sweeps.md has the table of 400 per share."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # nothing is killed here, and it takes most of the time
    outcomes = [outcome for outcome in BENCHMARK["simulate"](20, 40, 0.3, tmp_path) if outcome.audit.audited]
    true, printed = (np.array(rates) for rates in zip(*[(o.true_rate, o.audit.rate) for o in outcomes], strict=True))
    covered = [outcome.audit.low <= outcome.true_rate <= outcome.audit.high for outcome in outcomes]
    assert len(outcomes) >= 19
    assert true.mean() > 0.08
    assert abs((printed - true).mean()) < 2.5 * (printed - true).std() / math.sqrt(len(outcomes))
    assert np.mean(covered) >= 0.9


def test_with_a_full_audit_every_stop_is_audited_and_the_correlations_are_those_of_the_curves(tmp_path: Path) -> None:
    run = sweep(tmp_path, 1.0)
    curves = BENCHMARK["draw_curves"](30, 0)
    audit = audit_stops(run)
    assert audit.audited == audit.stops > 10
    assert audit.rate == BENCHMARK["true_rate"](run, curves)
    assert audit.correlations == {
        epoch: pytest.approx(spearmanr(curves[:, epoch - 1], curves[:, -1]).statistic) for epoch in (1, 3)
    }


def test_items_of_a_weighted_rank_correlation_count_as_often_as_their_weight(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 5, 12).astype(float), rng.random(12)
    weights = rng.integers(1, 4, 12)
    repeated = spearmanr(np.repeat(first, weights), np.repeat(second, weights)).statistic
    assert weighted_spearman(first, second, weights.astype(float)) == pytest.approx(repeated)
    assert math.isnan(weighted_spearman(np.ones(5), rng.random(5), np.ones(5)))


def test_the_interval_of_a_share_is_wilsons() -> None:
    assert all(math.isnan(bound) for bound in wilson_interval(0, 0))
    for count in (1, 2, 7, 85):
        for successes in range(count + 1):
            expected = binomtest(successes, count).proportion_ci(method="wilson")
            assert wilson_interval(successes, count) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_of_many_rungs_a_few_correlations_are_printed() -> None:
    audit = StopAudit(9, 0, 5, 1, 0, 0.0, 0.5, {epoch: epoch / 300 for epoch in range(1, 251)} | {251: math.nan})
    line = correlation_line(audit)
    assert line.endswith(
        "is 0.00 at epoch 1, 0.21 at epoch 63, 0.42 at epoch 125, 0.63 at epoch 188, 0.83 at epoch 250"
    )


def test_without_an_audit_nothing_is_said_of_the_stops(tmp_path: Path) -> None:
    run = sweep(tmp_path, 0.0)
    audit = audit_stops(run)
    assert (audit.audited, audit.stops > 10) == (0, True)
    assert math.isnan(audit.rate)
    assert all(math.isnan(value) for value in audit.correlations.values())
    assert all("audit" not in line for line in audit_lines(run))


def test_status_prints_the_audit_and_the_default_recipe_that_is_protected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Four trials: 0, the default, and 1 would have been stopped at epoch 1, and 1 beats all that were let through."""
    config = BENCHMARK["make_config"](4, 0, {"grace_period": 1, "reduction_factor": 3, "audit": 1.0})
    (tmp_path / "study.yaml").write_text(BENCHMARK["dump"](config))
    journal, scheduler = start_journal(tmp_path, config)
    journal.enqueue_first([config.space.default_params()])
    for _ in range(4):
        journal.ask()
    for number, scores in ((2, (0.5, 0.6, 0.7)), (0, (0.3, 0.4, 0.5)), (1, (0.2, 0.5, 0.9)), (3, (0.4, 0.4, 0.45))):
        rows = [make_report(epoch, score) for epoch, score in zip((1, 3, 9), scores, strict=True)]
        rows[-1]["end_reason"] = "epochs" if number != 3 else ""
        report_all(journal, scheduler, number, *rows)
        journal.tell(number)
    run = read_run(tmp_path)
    print_status(run)
    shown = capsys.readouterr().out
    assert "complete (protected)" in shown
    assert "complete (audited)" in shown
    lines = shown.splitlines()
    first = next(index for index, line in enumerate(lines) if line.startswith("audit: "))
    assert lines[first : first + 4] == [
        "audit: 2 trials were to be stopped (the default recipe is not counted); drawn of them to go on: 1 "
        "trained to the end, 1 not ended yet",
        "false stops: 1 of 1 (100 %, 95 % interval 21 to 100 %) ended above the median of the trials that were never "
        "to be stopped; 1 above the best of these",
        "do early scores predict the final ones? too few trials to tell; it takes 4 that ended, and an audited one if "
        "any was to be stopped",
        "trial 0, the default recipe, would have been stopped at epoch 1; it is protected",
    ]
    assert run.best().number == 1


def test_before_a_trial_is_to_be_stopped_the_audit_says_so(tmp_path: Path) -> None:
    config = BENCHMARK["make_config"](4, 0, {"grace_period": 1, "reduction_factor": 3, "audit": 1.0})
    (tmp_path / "study.yaml").write_text(BENCHMARK["dump"](config))
    journal, scheduler = start_journal(tmp_path, config)
    for _ in range(2):
        journal.ask()
    report_all(journal, scheduler, 0, make_report(1, 0.5))
    assert audit_lines(read_run(tmp_path)) == [
        "audit: no trial was to be stopped so far (the default recipe is not counted)"
    ]
    report_all(journal, scheduler, 1, make_report(1, 0.2))
    assert audit_lines(read_run(tmp_path))[:2] == [
        "audit: 1 trial was to be stopped (the default recipe is not counted); drawn of them to go on: 1 not ended yet",
        "false stops: unknown until such a trial and one that was never to be stopped have ended",
    ]


def test_an_audited_trial_that_diverges_was_stopped_rightly(tmp_path: Path) -> None:
    config = BENCHMARK["make_config"](4, 0, {"grace_period": 1, "reduction_factor": 3, "audit": 1.0})
    (tmp_path / "study.yaml").write_text(BENCHMARK["dump"](config))
    journal, scheduler = start_journal(tmp_path, config)
    for _ in range(2):
        journal.ask()
    report_all(journal, scheduler, 0, make_report(1, 0.5), make_report(9, 0.6, end_reason="epochs"))
    report_all(journal, scheduler, 1, make_report(1, 0.2))
    journal.record(1, {"epoch": 2, "end_reason": "non_finite", "log": ""})
    for number in (0, 1):
        journal.tell(number)
    audit = audit_stops(read_run(tmp_path))
    assert (audit.stops, audit.audited, audit.false, audit.pending) == (1, 1, 0, 0)
