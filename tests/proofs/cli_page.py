"""The page docs/cli.md: the verbs of voxtune as tables, from their help.

python tests/proofs/cli_page.py      write docs/cli.md
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from trainable.core.options import format_value
from tune.cli import app
from tune.cli.command import PANELS

PAGE = Path(__file__).parents[2] / "docs/cli.md"
HEAD = """# The verbs of voxtune

`voxtune VERB --help` prints the same. Exit codes: 0 done; 1 no trial has a score, `verify` or `doctor` found something
wrong, or a training diverged; 2 something to correct; 128 + N signal N (130 Ctrl-C, 143 SIGTERM).

This page is made by `make docs` from `tune/cli`; do not edit it.
"""
# The flags of `voxtune train` are those of train.py, which typer does not know.
TRAIN_PAGE = "All options are in [options.md](options.md)."
TABLE_HEAD = "| argument | default | meaning |\n| --- | --- | --- |"


def cli_page() -> str:
    """Return the page as Markdown, one section per verb."""
    commands: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    return HEAD + "".join(section(name, commands[name]) for names in PANELS.values() for name in names)


def section(name: str, command: Any) -> str:
    """Return the section of a verb: what it does, how it is called, an example, its arguments."""
    example = command.epilog.removeprefix("Example: ")
    rows = [row(param) for param in command.params if param.name != "help"]
    table = "\n".join([TABLE_HEAD, *rows]) if rows else TRAIN_PAGE
    calls = "\n".join(dict.fromkeys([usage(name, command), example]))
    return f"\n## {name}\n\n{command.help}\n\n```\n{calls}\n```\n\n{table}\n"


def usage(name: str, command: Any) -> str:
    """Return the call with what is required."""
    required = [spelling(param) for param in command.params if param.required]
    optional = name == "train" or len(required) < sum(param.name != "help" for param in command.params)
    return " ".join(["voxtune", name, *required, *["[options]"] * optional])


def spelling(param: Any) -> str:
    """Return an argument as it is typed, with a word for its value."""
    value = " ".join([param.metavar or param.name.upper()] * max(1, param.nargs))
    if not param.opts[0].startswith("-"):
        return value
    return "/".join([param.opts[0], *param.secondary_opts]) if param.is_flag else f"{param.opts[0]} {value}"


def row(param: Any) -> str:
    """Return the row of an argument."""
    default = "required" if param.required else ""
    if not param.required and param.default is not None and not (param.is_flag or param.multiple):
        default = format_value(param.default)
    return f"| `{spelling(param)}` | {default} | {param.help} |"


if __name__ == "__main__":
    PAGE.write_text(cli_page())
