"""The parts of which a terminal's lines are made, and tables: sparklines, bars, recipes in few words, fitting lines."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from trainable.core.console import make_console
from trainable.training.case_scores import SCORE_COLUMNS
from tune.confirmation.report import table_text
from tune.confirmation.verdict import Arm
from tune.run.live_state import Activity
from tune.run.training_progress import TrainingProgress
from tune.terminal.recipe_words import short_recipe
from tune.terminal.sparkline import plot, sparkline
from tune.terminal.sweep_header import rough_range
from tune.terminal.text_lines import TICK, as_lines, flow, progress_bar
from tune.terminal.training_table import progress_lines
from tune.terminal.trial_lines import activity_text


def test_a_sparkline_has_a_block_per_column_and_ticks_at_the_rungs_ahead() -> None:
    curve = {1: 0.0, 2: 0.5, 3: 1.0}
    assert sparkline(curve, 9, 9, (0.0, 1.0), (1, 3, 6)) == f"▁▅█  {TICK}   "
    assert sparkline({}, 9, 9, (0.0, 1.0), (3,)) == f"  {TICK}      "
    assert sparkline({epoch: epoch / 100 for epoch in range(1, 101)}, 100, 8, (0.0, 1.0)) == "▂▃▄▅▆▇██"
    assert sparkline({5: 0.3}, 100, 4, (0.3, 0.3)) == "▅   "


def test_a_plot_has_its_scale_and_fits() -> None:
    lines = plot({5: 0.2, 10: 0.8}, 20, 40, 4, (5,))
    assert len(lines) == 4
    assert max(map(len, lines)) <= 40
    assert lines[0].startswith("0.8000 ")
    assert lines[-1].startswith("0.2000 ")
    assert lines[0].count("█") == 1
    assert all(TICK in line for line in lines[:-1])


def test_a_recipe_in_few_words() -> None:
    recipe = {"optimizer": "sgd", "lr": 0.0058, "scheduler": "step", "step_size": 40, "step_gamma": 0.1}
    recipe |= {"loss_weights": [2.0, 1.0], "residual": True, "deep_supervision": False, "weight_decay": 1e-05}
    expected = "sgd lr=.0058 step size=40 gamma=.1 w=2:1 residual no deep_supervision wd=1e-5"
    assert short_recipe(recipe) == expected


def test_what_a_trial_does_is_said_in_the_columns_there_are() -> None:
    activity = Activity(3, "training", 5, 50, 200, 6.51)
    assert activity_text(activity, 30) == f"{progress_bar(0.25, 8)} 50/200 6.51 patches/s"
    assert activity_text(activity, 18).endswith(" 50/200 6.51/s")
    assert activity_text(replace(activity, phase="validating", done=3, total=20), 18) == "validates 3/20"
    assert activity_text(Activity(3, "starting"), 18) == "starts"
    assert progress_bar(0.5, 4) == "██  "
    assert progress_bar(2.0, 4) == "████"


def test_parts_flow_into_lines_without_being_split() -> None:
    assert flow(["one two", "three", "four"], 12, between=", ") == ["one two", "  three", "  four"]
    assert flow(["one two", "three", "four"], 13, between=", ") == ["one two", "  three, four"]
    assert flow(["a" * 30], 10) == ["a" * 9 + "…"]


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [
        (2901, 16503, "0.8 to 4.6 h"),
        (30, 7100, "at most 118 min"),
        (40, 110, "40 to 110 s"),
        (7150, 7210, "about 2.0 h"),
        (90000, 300000, "1.0 to 3.5 days"),
        (0, 0.4, "at most 0 s"),
    ],
)
def test_a_range_of_time_has_one_unit(low: float, high: float, text: str) -> None:
    assert rough_range(low, high) == text


def test_a_console_off_a_terminal_is_as_wide_as_columns_says(monkeypatch: pytest.MonkeyPatch) -> None:
    for columns, width in (("80", 80), ("0", 150), ("", 150), ("wide", 150)):
        monkeypatch.setenv("COLUMNS", columns)
        assert make_console().width == width


def test_scores_of_cases_are_in_as_many_tables_as_fit_below_each_other() -> None:
    from trainable.evaluate import score_table  # here, because it imports torch

    regions = ("WT", "TC", "ET")
    values = {f"{kind}_{region}": 0.5 for kind in ("dice", "hd95", "sensitivity", "specificity") for region in regions}
    scores: Any = {f"BraTS2021_{number:05d}": {**values, "dice_mean": 0.5} for number in range(3)}
    parts = dict.fromkeys(scores, "test")
    wide, narrow = score_table(scores, parts), score_table(scores, parts, 80)
    assert max(map(len, wide.splitlines())) > 120
    assert max(map(len, narrow.splitlines())) <= 80
    assert narrow.count("0.5000") == wide.count("0.5000")
    assert narrow.count("mean test") == 3


def test_the_recipes_of_a_confirmation_fit_80_columns() -> None:
    means = dict.fromkeys(SCORE_COLUMNS, 0.81234)
    arms = [Arm(f"trial_{n:04d}", 12, means, dict.fromkeys(SCORE_COLUMNS, 0.0123), "", 0.9, -0.0123) for n in (3, 14)]
    found: Any = SimpleNamespace(val=SimpleNamespace(arms=arms, comparison=None), plan=SimpleNamespace(folds=0))
    lines = table_text(found).splitlines()
    assert max(map(len, lines)) <= 80
    assert len({len(line) for line in lines}) == 1
    assert lines[1].split()[2:] == ["0.8123", "0.8123", "0.8123", "0.8123", "+-", "0.0123", "0.9000", "-0.0123"]


def test_running_trainings_fit_80_columns() -> None:
    training = TrainingProgress("trial_0012 seed_1000002 fold_3", 1000, 999, 0.81234, 998, 86399.0)
    [heading, line] = as_lines(progress_lines([training]), 80)
    assert line.plain == " 999/1000     998  0.8123 23:59:59 running  trial_0012 seed_1000002 fold_3"
    assert heading.plain.index("training") == line.plain.index("trial_0012")
