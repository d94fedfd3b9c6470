"""The report as one HTML file, which opens anywhere and fetches nothing."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainable.core.files import atomic_write_text
from trainable.core.package_version import version
from tune.report.blocks import Facts, Section, json_for_script, kind
from tune.report.fragments import static_text


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
    atomic_write_text(output, render(page), fsync=False)


def render(page: Page) -> str:
    """Return the page as HTML."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from plotly.offline import get_plotlyjs

    environment = Environment(
        loader=PackageLoader("tune.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"kind": kind, "json": json_for_script, "inline_code": inline_code}
    return environment.get_template("report.html.j2").render(
        page=page,
        style=static_text("report.css"),
        script=static_text("report.js"),
        plotly=get_plotlyjs(),
        made=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        version=version("voxtune"),
    )


def inline_code(text: str) -> str:
    """Return a text as HTML, in which what stands in backticks is code."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))
