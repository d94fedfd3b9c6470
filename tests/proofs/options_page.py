"""The page docs/options.md: the options of a training as tables, and the tests that prove each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import fill

from trainable.core.config import TrainConfig
from trainable.core.options import allowed, format_value, option_info, option_names

TITLE = "# Options of a training"
INTRODUCTION = (
    "Each option is a flag of `voxtune train` and of `train.py` (`--lr 1e-3`, `--target_shape 96 96 96`, `--residual` "
    "or `--no-residual`) and a key of `--config FILE`. A sweep may fix it under `train:`, and search those of the "
    "groups {searched} under `space:`; a sweep itself sets {set_by}. *On resume*: whether `--resume` may change it.",
    "This page is made by `make docs` from `trainable/core/config.py` and `tests/proofs/option_proofs.py`; do not edit "
    "it.",
)
TABLE_HEAD = """| option | default | allowed | unit | meaning | on resume |
| --- | --- | --- | --- | --- | --- |"""
PROOFS_HEAD = """
## For developers: the tests of each option

`make proofs` runs these tests with the option always at its default (in a few places with a line of code changed) and
shows that they then fail.

| option | proved by |
| --- | --- |"""


def options_page(tests: Mapping[str, Sequence[str]]) -> str:
    """Return the page as Markdown, one table per group. tests: the tests of each option."""
    tables: dict[str, list[str]] = {}
    for name, field in TrainConfig.model_fields.items():
        info = option_info(name)
        resume = "fixed" if info.fixed else "may change"
        cells = [f"`{name}`", format_value(field.default), allowed(name), info.unit, str(field.description), resume]
        tables.setdefault(info.group, [TABLE_HEAD]).append("| " + " | ".join(cells) + " |")
    groups = list(dict.fromkeys(option_info(name).group for name in option_names(role="recipe")))
    reserved = [name for name in TrainConfig.model_fields if option_info(name).set_by]
    texts = [text.format(searched=_listed(groups), set_by=_listed(reserved)) for text in INTRODUCTION]
    page = "\n\n".join([TITLE, *(fill(text, 120, break_on_hyphens=False) for text in texts)]) + "\n"
    page += "".join(f"\n## {group}\n\n" + "\n".join(rows) + "\n" for group, rows in tables.items())
    rows = [f"| `{name}` | {'<br>'.join(f'`{test}`' for test in tests[name])} |" for name in TrainConfig.model_fields]
    return page + "\n".join([PROOFS_HEAD, *rows]) + "\n"


def _listed(words: Sequence[str]) -> str:
    """Return "a, b and c"."""
    return f"{', '.join(words[:-1])} and {words[-1]}"
