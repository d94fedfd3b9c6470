"""Pages in a real browser: the system's chromium, headless. The fixtures `page` and `page_log` are in conftest.py."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@dataclass
class PageLog:
    """What a page has done since it was watched: errors of its scripts and console, and each URL that it fetched."""

    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@contextmanager
def open_browser() -> Iterator[Browser]:
    """Start the browser; skip the test if there is none, saying what is missing."""
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is installed")
    playwright = pytest.importorskip("playwright.sync_api", reason="needs `pip install voxtune[browser-tests]`")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


def watch(page: Page) -> PageLog:
    """Record a page's errors and requests from now on; data: and blob: URLs, which leave no machine, are left out."""
    log = PageLog()
    page.on("pageerror", lambda error: log.errors.append(str(error)))
    page.on("console", lambda message: log.errors.append(message.text) if message.type == "error" else None)
    page.on("request", lambda request: _add_request(log, request.url))
    return log


def _add_request(log: PageLog, url: str) -> None:
    if not url.startswith(("data:", "blob:")):
        log.requests.append(url)


def axe_violations(page: Page) -> list[str]:
    """Return what axe-core finds serious or critical in a page: rule, what it asks, and the first element."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs voxtune[browser-tests]")
    found: list[dict[str, Any]] = axe.Axe().run(page).response["violations"]
    return [
        f"{rule['id']}: {rule['help']}: {rule['nodes'][0]['html']}"
        for rule in found
        if rule["impact"] in ("serious", "critical")
    ]
