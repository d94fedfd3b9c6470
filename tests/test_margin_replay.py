"""The margin of a decision is told by what was in the journal before it: after a kill, and when `verify` replays it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import SWEEP, make_report, start_journal

from tune.run.journal_entries import read_entries
from tune.run.results import read_run
from tune.run.verify_decisions import check_decisions
from tune.search.asha import CONTINUE, RungDecision
from tune.search.journal import read_trials
from tune.search.journal_file import JOURNAL
from tune.search.trial_progress import rung_decisions
from tune.spec.sweep_config import SweepConfig, make_sweep_config
from tune.spec.sweep_file import dump


def with_margin(metric: Any = "val_dice_mean") -> SweepConfig:
    stopping = {"grace_period": 3, "reduction_factor": 3, "value": "recent", "min_trials": 2, "margin": "auto"}
    study = {"trials": 12, "seed": 3, "metric": metric}
    return make_sweep_config({**SWEEP, "study": study, "early_stopping": stopping, "train": {"epochs": 27}})


def sweep(folder: Path, config: SweepConfig, *, interrupt: tuple[int, ...] = ()) -> dict[int, dict[int, RungDecision]]:
    """Trials in turns with noisy scores; the journal is closed and opened again after these numbers of reports."""
    folder.mkdir()
    (folder / "study.yaml").write_text(dump(config))
    rng, reports = np.random.default_rng(0), 0
    final = rng.uniform(0.4, 0.8, 12)
    noise = rng.normal(0, 0.02, (12, 27))
    journal, scheduler = start_journal(folder, config)
    running = {journal.ask()[0]: 0 for _ in range(12)}
    best = dict.fromkeys(running, (0.0, 0))
    while running:
        for number in list(running):
            running[number] += 1
            epoch = running[number]
            score = float(final[number] * (1 - np.exp(-epoch / 4)) + noise[number, epoch - 1])
            best[number] = max(best[number], (score, epoch))
            report = make_report(epoch, score, best[number][0], "epochs" if epoch == 27 else "")
            report["best_epoch"] = best[number][1]
            journal.record(number, report)
            reports += 1
            if reports in interrupt:
                journal, scheduler = start_journal(folder, config)
                journal.reattach()
                journal.record(number, report)
            if scheduler.decide(number, report) != CONTINUE or epoch == 27:
                journal.tell(number)
                del running[number]
    return {trial.number: rung_decisions(trial.user_attrs) for trial in read_trials(folder)}


def wrong(folder: Path) -> list[str]:
    run = read_run(folder)
    return list(check_decisions(run.config, read_trials(folder), read_entries(run)))


def margins(decisions: dict[int, dict[int, RungDecision]]) -> list[float]:
    return [rung.margin for of in decisions.values() for rung in of.values()]


@pytest.mark.parametrize("metric", ["val_dice_mean", ["val_dice_mean", "seconds"]])
def test_decisions_with_an_estimated_margin_do_not_depend_on_interruptions(tmp_path: Path, metric: Any) -> None:
    """With a cost Optuna takes no scores: the journal keeps the last ones itself."""
    whole = sweep(tmp_path / "whole", with_margin(metric))
    parts = sweep(tmp_path / "parts", with_margin(metric), interrupt=(5, 27, 30, 61, 100))
    assert parts == whole
    assert margins(parts) == margins(whole)
    assert 0.005 < max(margins(whole)) < 0.02  # half the noise
    assert any(rung.decision == "STOP" for of in whole.values() for rung in of.values())
    assert wrong(tmp_path / "whole") == wrong(tmp_path / "parts") == []


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    lines = (folder / JOURNAL).read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    for entry in entries:
        change(entry)
    (folder / JOURNAL).write_text("".join(json.dumps(entry) + "\n" for entry in entries))


def test_verify_finds_a_margin_that_the_scores_do_not_tell(tmp_path: Path) -> None:
    sweep(tmp_path / "run", with_margin())

    def wider(entry: dict[str, Any]) -> None:
        for rung in entry.get("user_attr", {}).get("rungs", {}).values():
            if rung.get("margin"):
                rung["margin"] *= 2

    edit(tmp_path / "run", wider)
    assert any("was given a margin of " in text for text in wrong(tmp_path / "run"))
