"""The report as one HTML file, which opens anywhere and fetches nothing."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainable.core.files import atomic_write_text
from trainable.core.package_version import version
from tune.report.blocks import Facts, Section
from tune.report.rendering import render, static_text


@dataclass(frozen=True)
class Page:
    """What the page shows.

    title: its heading. subtitle: what kind of thing it is of. facts: below the heading. privacy: what data of patients
    the file has. trials: what trials.trial_data returns; {} without a TrialBrowser.
    """

    title: str
    subtitle: str
    facts: Facts
    privacy: str
    sections: Sequence[Section]
    trials: dict[str, Any]


def write_page(page: Page, output: Path) -> None:
    """Write the page; who reads the file meanwhile sees the old one or the new one, whole."""
    atomic_write_text(output, render_page(page), fsync=False)


def render_page(page: Page) -> str:
    """Return the page as HTML."""
    from plotly.offline import get_plotlyjs

    return render(
        "report.html.j2",
        page=page,
        style=static_text("report.css"),
        script=static_text("report.js"),
        plotly=get_plotlyjs(),
        made=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        version=version("voxtune"),
    )
