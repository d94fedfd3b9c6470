"""What a report consists of: sections of tables, figures, code and notes. Each has a macro in templates/, of its name.

All text is plain text: the template escapes it. Only a Fragment is HTML already.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Table:
    """A table whose first column names the rows.

    align: one letter per column: l for text, r for numbers. marked: index of the row that is emphasised, None for none.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    align: str
    marked: int | None = None


@dataclass(frozen=True)
class Figure:
    """A chart.

    name: of the element in the page, unique. summary: what it shows, for those who cannot see it. spec: data and
    layout for plotly.js; a colour may be "var(--name)", a custom property of static/report.css. A trace with the key
    "trials", the numbers of its points' trials, shows their recipes when one points at it. height: in pixels.
    """

    name: str
    title: str
    summary: str
    spec: dict[str, Any]
    height: int = 340


@dataclass(frozen=True)
class FigureGrid:
    """Small figures side by side, as many as the width of the screen allows."""

    figures: Sequence[Figure]


@dataclass(frozen=True)
class Code:
    """Text to copy. collapsed: shown only when asked for."""

    title: str
    text: str
    collapsed: bool = False


@dataclass(frozen=True)
class Note:
    """A paragraph. strong: it is what the section is about."""

    text: str
    strong: bool = False


@dataclass(frozen=True)
class Facts:
    """Names and values, as a list of pairs."""

    pairs: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class TrialBrowser:
    """The learning curves of all trials, with filters, and the table in which one picks them (see trials.trial_data).

    statuses: the groups of trials that there are, as keys of chart_style.MARKS. names: what each is called.
    """

    summary: str
    statuses: Sequence[str]
    names: dict[str, str]
    options: Sequence[str]
    table: Table
    score: str


@dataclass(frozen=True)
class Fragment:
    """HTML that is put into the page as it is; it must have escaped what it shows."""

    html: str


Block = Table | Figure | FigureGrid | Code | Note | Facts | TrialBrowser | Fragment


@dataclass(frozen=True)
class Section:
    """A part of the page. name: of the element in the page, unique. lead: what it says of this run, in a sentence."""

    name: str
    title: str
    lead: str
    blocks: Sequence[Block] = field(default_factory=tuple)
