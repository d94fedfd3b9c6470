"""The report in a real browser: charts, filters, themes, widths, print."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from browser import PageLog, axe_violations
from synthetic_run import make_synthetic_run

from tune.report.report import write_report

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.slow
SCROLL = """async () => { for (let y = 0; y < document.body.scrollHeight; y += 500) {
    scrollTo(0, y); await new Promise(done => setTimeout(done, 60)); } }"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a sweep of 60 trials."""
    run = make_synthetic_run(tmp_path_factory.mktemp("browser") / "run", trials=60, cases=4, gpus=3)
    return write_report([run], images="none", quiet=True)


def test_all_charts_are_drawn_with_no_error_and_no_request(page: Page, page_log: PageLog, report: Path) -> None:
    page.goto(report.as_uri())
    page.evaluate(SCROLL)
    charts = page.locator(".chart").count()
    page.wait_for_function(f"document.querySelectorAll('.chart .main-svg').length >= {charts}")
    assert page.locator(".chart.js-plotly-plot").count() == charts > 10
    assert page_log.errors == []
    assert page_log.requests == [report.as_uri()]
    titles = "[...new Set([...document.querySelectorAll('.modebar-btn')].map(button => button.dataset.title))]"
    assert page.evaluate(titles) == ["Download plot as a PNG", "Zoom", "Pan", "Reset axes"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(page: Page, report: Path, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    page.goto(report.as_uri())
    page.evaluate(SCROLL)
    assert axe_violations(page) == []


def test_filters_leave_those_trials_in_table_and_chart(page: Page, report: Path) -> None:
    page.goto(report.as_uri())
    page.locator("#curves_chart").scroll_into_view_if_needed()
    page.wait_for_selector("#curves_chart .main-svg")
    rows = page.locator("#trial_table tbody tr:visible")
    everything = rows.count()
    page.get_by_role("checkbox", name="stopped early").uncheck()
    some = rows.count()
    assert 0 < some < everything
    assert "stopped early" not in rows.all_inner_texts()[-1]
    page.locator("select[name=option]").select_option("optimizer")
    page.locator("select[name=value]").select_option(label="sgd")
    assert all("optimizer=sgd" in text for text in rows.all_inner_texts())
    assert page.locator("#trial_count").inner_text() == f"{rows.count()} of {everything} trials"
    page.locator("select[name=option]").select_option("lr")
    quarters = page.locator("select[name=value] option").all_inner_texts()
    assert len(quarters) == 5
    page.locator("select[name=value]").select_option(label=quarters[2])
    low, high = map(float, quarters[2].split(" to "))
    shown = [re.search(r"lr=(\S+)", text) for text in rows.all_inner_texts()]
    assert all(low <= float(found[1]) <= high for found in shown if found)
    assert any(shown)
    assert len(shown) < some
    page.get_by_role("button", name="All", exact=True).click()
    page.wait_for_function(f"document.querySelectorAll('#trial_table tbody tr:not([hidden])').length === {everything}")


def test_trials_are_picked_by_keyboard_and_by_a_click_on_a_curve(page: Page, report: Path) -> None:
    page.goto(report.as_uri())
    page.locator("#curves_chart").scroll_into_view_if_needed()
    page.wait_for_selector("#curves_chart .main-svg")
    first = page.locator("#trial_table tbody input").first
    first.focus()
    page.keyboard.press("Space")
    assert page.locator("#picked tr").count() > 2
    traces = "document.querySelector('#curves_chart .chart').data.map(trace => trace.name)"
    number = first.evaluate("box => box.closest('tr').dataset.trial")
    assert f"trial {number}" in page.evaluate(traces)
    point = "{points: [{data: {trials: [3]}, pointIndex: 0}]}"
    page.evaluate(f"document.querySelector('#curves_chart .chart').emit('plotly_click', {point})")
    assert "trial 3" in page.evaluate(traces)
    assert "trial 3" in page.locator("#picked").inner_text()


def test_pointing_at_a_mark_shows_the_recipe(page: Page, report: Path) -> None:
    page.goto(report.as_uri())
    page.locator("#history_chart").scroll_into_view_if_needed()
    page.locator("#history_chart .point").nth(4).hover(force=True)
    page.wait_for_selector("#history_chart .hoverlayer text")
    shown = page.locator("#history_chart .hoverlayer").text_content() or ""
    assert "trial" in shown
    assert "lr" in shown


def test_a_column_can_be_sorted(page: Page, report: Path) -> None:
    page.goto(report.as_uri())
    page.get_by_role("button", name="trial", exact=True).click()
    numbers = [int(text) for text in page.locator("#trial_table tbody th").all_inner_texts()]
    assert numbers == sorted(numbers, reverse=True)
    page.evaluate("document.querySelectorAll('#trial_table td:nth-child(6)')[3].textContent = '1,234.5'")
    page.get_by_role("button", name="minutes", exact=True).click()
    minutes = page.locator("#trial_table tbody td:nth-child(6)").all_inner_texts()
    assert minutes[0] == "1,234.5"


def test_the_theme_is_chosen_by_a_button_and_colours_the_charts(page: Page, report: Path) -> None:
    page.goto(report.as_uri())
    page.locator("#history_chart").scroll_into_view_if_needed()
    page.wait_for_selector("#history_chart .main-svg")
    colour = "document.querySelector('#history_chart .chart')._fullLayout.font.color"
    before = page.evaluate(colour)
    page.locator("#theme").click()  # light
    page.locator("#theme").click()  # dark
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    assert page.evaluate(colour) != before


def test_a_phone_scrolls_in_one_direction_only(page: Page, report: Path) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    page.goto(report.as_uri())
    page.evaluate(SCROLL)
    assert page.evaluate("document.documentElement.scrollWidth") == 360


def test_print_has_all_charts_on_light_paper_and_what_was_collapsed(page: Page, report: Path) -> None:
    page.emulate_media(color_scheme="dark")
    page.goto(report.as_uri())
    charts = page.locator(".chart").count()
    page.evaluate("""addEventListener('beforeprint', () => { window.printed = {
        charts: document.querySelectorAll('.chart.js-plotly-plot').length,
        theme: document.documentElement.dataset.theme,
        closed: document.querySelectorAll('details:not([open])').length } })""")
    page.pdf(format="A4")
    assert page.evaluate("printed") == {"charts": charts, "theme": "light", "closed": 0}
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
