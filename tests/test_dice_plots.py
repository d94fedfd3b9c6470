"""Dice by region and case in a report: the points, the line that joins a case, the worst cases and their causes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from browser import PageLog
from synthetic_run import make_synthetic_run

from trainable.core.errors import InputError
from trainable.data.cache import open_case
from trainable.data.prepare import Data
from trainable.training.case_scores import case_rows, read_case_scores
from tune.report.case_causes import likely_cause, truth_ml
from tune.report.dice_plots import dice_section, dice_section_of_confirmation, dice_section_of_training
from tune.run.results import Run, read_run

if TYPE_CHECKING:
    from playwright.sync_api import Page

CONFIRMED = """arm,seed,fold,part,case,dice_WT,dice_TC,dice_ET,dice_mean
default,1,,val,a,0.5,0.5,0.5,0.5
default,2,,val,a,0.7,0.5,0.3,0.5
default,1,,test,b,0.2,0.2,0.2,0.2
trial_0012,1,,val,a,0.9,0.9,0.9,0.9
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A sweep of 40 trials and 6 validation cases."""
    return read_run(make_synthetic_run(tmp_path_factory.mktemp("sweep") / "run", trials=40, cases=6))


def charts(html: str) -> list[dict[str, Any]]:
    """What report.js draws."""
    return [json.loads(text) for text in re.findall(r'<script type="application/json">(.*?)</script>', html, re.S)]


def scores(dice: float, **regions: float) -> dict[str, float]:
    return {f"dice_{name}": regions.get(name, dice) for name in ("WT", "TC", "ET", "mean")}


def test_each_case_of_the_best_trials_and_of_the_default_is_a_point(run: Run) -> None:
    winner = run.best()
    of_winner = read_case_scores(run.dir.trial(winner.number).case_scores)[winner.best_epoch]
    worst_first = sorted(of_winner, key=lambda case: of_winner[case]["dice_mean"])
    plots = charts(dice_section(run, anonymous=False))
    assert len(plots) == 3
    for region, plot in zip(("WT", "TC", "ET"), plots, strict=True):
        points, means, _ = plot["data"]
        ticks = plot["layout"]["xaxis"]["ticktext"]
        assert ticks[0] == str(winner.number)
        assert ticks[-1] == "default"
        assert len(points["x"]) == 6 * len(ticks)
        assert points["y"][:6] == [round(of_winner[case][f"dice_{region}"], 4) for case in worst_first]
        assert points["customdata"][:6] == list(range(6))
        assert points["x"] == sorted(points["x"])  # side by side, no column reaches into the next
        assert means["y"][0] == pytest.approx(winner.dice[region], abs=1e-4)
        assert all(case in text for case, text in zip(worst_first, points["text"], strict=False))


def test_an_anonymous_section_numbers_the_cases_from_the_winners_worst(run: Run) -> None:
    html = dice_section(run, anonymous=True)
    assert "BraTS2021" not in html
    assert charts(html)[0]["data"][0]["text"][0].startswith("case 1, trial ")
    assert '<th scope="row">case 1</th>' in html
    assert "BraTS2021" in dice_section(run, anonymous=False)


def test_a_run_without_scores_has_no_section(tmp_path: Path, run: Run) -> None:
    assert dice_section(Run(run.dir, run.config, []), anonymous=True) == ""
    assert dice_section_of_training(tmp_path, anonymous=True) == ""
    assert dice_section_of_confirmation(tmp_path, cache=tmp_path, anonymous=True) == ""


def test_a_confirmation_shows_the_mean_over_the_trainings_of_each_recipe(tmp_path: Path) -> None:
    (tmp_path / "scores.csv").write_text(CONFIRMED)
    validation, _, _, test, _, _ = charts(dice_section_of_confirmation(tmp_path, cache=tmp_path, anonymous=True))
    assert validation["layout"]["xaxis"]["ticktext"] == ["trial\N{NO-BREAK SPACE}12", "default"]
    assert validation["data"][0]["y"] == [0.9, 0.6]
    assert test["layout"]["xaxis"]["ticktext"] == ["default"]
    assert test["data"][0]["y"] == [0.2]
    (tmp_path / "scores.csv").write_text(CONFIRMED.replace("0.9", "x"))
    with pytest.raises(InputError, match=r"scores.csv: damaged .*run `voxtune confirm` again"):
        dice_section_of_confirmation(tmp_path, cache=tmp_path, anonymous=True)


def test_a_training_shows_the_cases_of_its_best_epoch_and_tested_ones_that_it_was_not_trained_on(
    tmp_path: Path,
) -> None:
    (tmp_path / "metrics.csv").write_text("epoch,best_epoch,end_reason\n1,1,\n2,1,epochs\n")
    head = "epoch,case,dice_WT,dice_TC,dice_ET,dice_mean\n"
    rows = case_rows(1, {"a": scores(0.8)}) + case_rows(2, {"a": scores(0.1)})
    (tmp_path / "case_scores.csv").write_text(head + rows)
    html = dice_section_of_training(tmp_path, anonymous=True)
    assert [plot["data"][0]["y"] for plot in charts(html)] == [[0.8]] * 3
    tested = {"cases": {"b": scores(0.7), "c": scores(0.9)}, "parts": {"b": "test", "c": "train"}, "epoch": 1}
    (tmp_path / "test_scores.json").write_text(json.dumps(tested))
    html = dice_section_of_training(tmp_path, anonymous=True)
    assert [plot["data"][0]["y"] for plot in charts(html)] == [[0.8]] * 3 + [[0.7]] * 3
    (tmp_path / "test_scores.json").write_text("{")
    with pytest.raises(InputError, match=r"test_scores.json: damaged"):
        dice_section_of_training(tmp_path, anonymous=True)


def test_the_volume_of_regions_in_the_truth_is_read_from_the_cache(prepared: Data, tmp_path: Path) -> None:
    name = prepared.split.names[0]
    found = truth_ml(prepared.folder, name)
    assert found is not None
    assert found["WT"] == pytest.approx((open_case(prepared.folder, name).label > 0).sum() / 1000)  # voxels of 1 mm
    without_et = [case for case in prepared.split.names if (truth_ml(prepared.folder, case) or {})["ET"] == 0]
    assert len(without_et) == 1
    assert truth_ml(tmp_path, name) is None


@pytest.mark.parametrize(
    ("dice", "truth", "elsewhere", "cause"),
    [
        (scores(0.9, ET=0.0), {"ET": 0.0}, {}, "no ET in the truth, but some was predicted: Dice 0"),
        (scores(0.9, ET=0.0), {"ET": 2.25}, {}, "ET of 2.2 mL is missed"),
        (scores(0.9, ET=0.4), {"ET": 0.12}, {}, "ET is small: 0.12 mL"),
        (scores(0.9, ET=0.4), {"ET": 3.0}, {}, ""),
        (scores(0.9, ET=0.0), None, {}, "ET is missed, or predicted where the truth has none"),
        (scores(0.3), None, {"trial 4": 0.8, "default": 0.1}, "trial 4 has 0.800 here"),
        (scores(0.3), None, {"trial 4": 0.33}, "low by all recipes shown"),
        (scores(0.8), None, {"trial 4": 0.83}, ""),
    ],
)  # fmt: skip
def test_the_likely_cause_of_a_low_dice(
    dice: dict[str, float], truth: dict[str, float] | None, elsewhere: dict[str, float], cause: str
) -> None:
    assert likely_cause(dice, truth, elsewhere) == cause


@pytest.mark.slow
def test_choosing_a_case_or_pointing_at_it_joins_its_points(
    page: Page, page_log: PageLog, run: Run, tmp_path: Path
) -> None:
    from plotly.offline import get_plotlyjs

    file = tmp_path / "dice.html"
    draw = """for (const figure of document.querySelectorAll("figure")) {
      const { data, layout } = JSON.parse(figure.querySelector("script").textContent);
      Plotly.newPlot(figure.querySelector(".chart"), data, { ...layout, hovermode: "closest" });
    }"""
    body = dice_section(run, anonymous=True)
    file.write_text(
        f"<!doctype html><meta charset=utf-8><script>{get_plotlyjs()}</script>{body}<script>{draw}</script>"
    )
    page.goto(file.as_uri())
    joined = """() => [...document.querySelectorAll(".chart")].map((chart) => chart.data.at(-1).y)"""
    assert page.evaluate(joined) == [[], [], []]
    page.get_by_label("Join the points of").select_option("2")
    recipes = len(charts(body)[0]["data"][1]["x"])
    chosen = page.evaluate(joined)
    assert [len(line) for line in chosen] == [recipes] * 3
    for line, plot in zip(chosen, charts(body), strict=True):
        assert line == plot["data"][0]["y"][2::6]
    page.locator(".chart .points path").first.hover(force=True)
    page.wait_for_function(
        "document.querySelector('.chart').data.at(-1).y[0] === document.querySelector('.chart').data[0].y[0]"
    )
    assert page_log.errors == []
