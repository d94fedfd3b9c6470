"""The browser that tests look at pages with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from browser import PageLog, axe_violations

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.slow
BAD_PAGE = """<!doctype html><title>bad</title><img src="picture.png">
<script>console.error("told"); nothing()</script>"""


def test_errors_requests_and_barriers_of_a_page_are_found(page: Page, page_log: PageLog, tmp_path: Path) -> None:
    file = tmp_path / "bad.html"
    file.write_text(BAD_PAGE)
    page.goto(file.as_uri())
    assert page_log.requests == [file.as_uri(), (tmp_path / "picture.png").as_uri()]
    assert "told" in page_log.errors
    assert any("nothing is not defined" in error for error in page_log.errors)
    assert {violation.split(":")[0] for violation in axe_violations(page)} >= {"image-alt", "html-has-lang"}
