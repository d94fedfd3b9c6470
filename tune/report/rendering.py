"""The templates in templates/ as HTML, with the styles and scripts in static/ that they need."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment

HERE = Path(__file__).parent


def render(template: str, **values: Any) -> str:
    """Return a template as HTML.

    Values that are text are escaped. A value is written into a <script> by the filter tojson: nothing in it can end
    the element, and what is no JSON, as NaN, raises ValueError.
    """
    return _environment().get_template(template).render(values)


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    environment.filters["inline_code"] = inline_code
    environment.filters["class_name"] = lambda value: type(value).__name__
    return environment


def inline_code(text: str) -> str:
    """Return a text as HTML, in which what stands in backticks is code."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def static_text(name: str) -> str:
    """Return the text of a file in static/."""
    return (HERE / "static" / name).read_text(encoding="utf-8")
