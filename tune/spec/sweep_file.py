"""The YAML that a study is read from and written to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from trainable.core.errors import InputError
from trainable.core.options import NumberLoader, did_you_mean
from tune.spec.space import KeyPath, Problems
from tune.spec.sweep_config import SECTIONS, SweepConfig, make_sweep_config, to_sections


@dataclass(frozen=True)
class Source:
    """Values read from YAML, and where each key is written: its line, or None for --set."""

    name: str
    values: dict[str, Any]
    lines: dict[KeyPath, int | None]

    def place(self, path: KeyPath) -> tuple[int, str]:
        """Where a key, or else the nearest one above it, is written: a line to sort by, and words."""
        while path and path not in self.lines:
            path = path[:-1]
        line = self.lines.get(path, 1)
        return (line, f"{self.name}:{line}") if line else (10**9, f"--set {'.'.join(map(str, path))}")

    def override(self, text: str) -> Source:
        """With `section.key=value` in place; null drops the key."""
        dotted, equals, given = text.partition("=")
        section, _, key = dotted.strip().partition(".")
        if not equals or not key:
            raise InputError(f"--set {text}: expected section.key=value, such as train.epochs=3")
        if section not in SECTIONS:
            raise InputError(f"--set {text}: unknown section {section!r}{did_you_mean(section, list(SECTIONS))}")
        keys = self.values.get(section) or {}
        if not isinstance(keys, dict):
            return self  # make_sweep_config refuses the section
        value, _ = _parse(f"--set {dotted}", given)
        if value is None and key not in keys:
            raise InputError(
                f"--set {text}: there is no {section}.{key} to drop{did_you_mean(key, list(map(str, keys)))}"
            )
        keys = {**keys, key: value} if value is not None else {k: v for k, v in keys.items() if k != key}
        lines = {path: line for path, line in self.lines.items() if path[:2] != (section, key)}
        return replace(self, values={**self.values, section: keys}, lines={**lines, (section, key): None})


def load_sweep_config(path: Path | str, overrides: Sequence[str] = ()) -> SweepConfig:
    """The study of a YAML file or a shipped one's bare name, overridden; InputError places every problem found."""
    source = _read(*_find(Path(path)))
    for text in overrides:
        source = source.override(text)
    try:
        return make_sweep_config(source.values)
    except Problems as error:
        placed = sorted((source.place(where), sentence) for where, sentence in error.found)
        raise InputError("\n".join(f"{place}: {sentence}" for (_, place), sentence in placed)) from None


def dump(config: SweepConfig) -> str:
    """YAML that load_sweep_config reads back as an equal study."""
    return yaml.dump(to_sections(config), Dumper=NumberDumper, sort_keys=False, default_flow_style=None, width=120)


class NumberDumper(yaml.SafeDumper):
    """Quotes the strings that NumberLoader would take for numbers, such as the commit 12e4567."""

    yaml_implicit_resolvers = NumberLoader.yaml_implicit_resolvers


def _find(path: Path) -> tuple[str, str]:
    """Name and text of a file, or of a space shipped with voxtune."""
    files = resources.files("search_spaces").iterdir()
    shipped = {file.name.removesuffix(".yaml"): file for file in files if file.name.endswith(".yaml")}
    bare = path.name.removesuffix(".yaml")
    try:
        if not path.is_file() and len(path.parts) == 1 and bare in shipped:
            return f"search_spaces/{bare}.yaml", shipped[bare].read_text(encoding="utf-8")
        return str(path), path.read_text(encoding="utf-8")
    except FileNotFoundError:
        close = did_you_mean(bare, list(shipped))
        raise InputError(f"{path}: no such file{close}; shipped are {', '.join(sorted(shipped))}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as text: {error}") from None


def _parse(place: str, text: str) -> tuple[Any, yaml.Node | None]:
    """The value of a YAML text and its node; place names it in an error."""
    try:
        loader = NumberLoader(text)
        node = loader.get_single_node()
        return None if node is None else loader.construct_document(node), node
    except (yaml.YAMLError, ValueError) as error:
        mark, what = getattr(error, "problem_mark", None), getattr(error, "problem", None) or error
        raise InputError(f"{place}:{mark.line + 1 if mark else 1}: cannot be read as YAML: {what}") from None


def _read(name: str, text: str) -> Source:
    """The values in a YAML text and their lines."""
    values, node = _parse(name, text)
    if not isinstance(values, dict):
        raise InputError(f"{name}:1: expected the sections {', '.join(SECTIONS)}")
    lines: dict[KeyPath, int | None] = {}
    twice = []
    for path, line in _lines(node):
        if path in lines:
            twice.append(f"{name}:{line}: {'.'.join(path)} is written twice, first in line {lines[path]}; keep one")
        lines.setdefault(path, line)
    if twice:
        raise InputError("\n".join(twice))
    return Source(name, values, lines)


def _lines(node: yaml.Node | None, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], int]]:
    """Each key of the mappings in a document and its line, as deep as a study goes."""
    if isinstance(node, yaml.MappingNode) and len(path) < 4:
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                yield (*path, key.value), key.start_mark.line + 1
                yield from _lines(value, (*path, key.value))
