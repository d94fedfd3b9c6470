"""Parts of a page as HTML, with the style and the script that they need."""

from __future__ import annotations

from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def render(template: str, **values: Any) -> str:
    """Return a template of templates/ as HTML; values that are text are escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(loader=FileSystemLoader(HERE / "templates"), autoescape=True, undefined=StrictUndefined)
    return environment.get_template(template).render(values)


def static_text(name: str) -> str:
    """Return the text of a file in static/."""
    return (HERE / "static" / name).read_text(encoding="utf-8")
