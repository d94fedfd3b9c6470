"""The YAML file that a SweepConfig is read from and written to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from trainable.core.errors import InputError
from trainable.core.option_errors import did_you_mean
from trainable.core.option_files import NumberLoader
from tune.spec.space import ConfigErrors, KeyPath, key_text
from tune.spec.sweep_config import SECTIONS, SweepConfig, make_sweep_config, to_sections

RUN_CONFIG = "study.yaml"  # name of the file in a run's folder, which has a record


@dataclass(frozen=True)
class Source:
    """Values read from YAML, and the line of each key, None for a key that --set has given. name: of the file."""

    name: str
    values: dict[str, Any]
    lines: dict[KeyPath, int | None]

    def location(self, path: KeyPath) -> tuple[int, str]:
        """Return where a key is written, or if it is not, the nearest key above it: a line to sort by, and a text."""
        while path and path not in self.lines:
            path = path[:-1]
        line = self.lines.get(path, 1)
        return (line, f"{self.name}:{line}") if line else (10**9, f"--set {key_text(path)}")

    def override(self, text: str) -> Source:
        """Return a copy with `section.key=value` set; null drops the key.

        Raises:
            InputError: the text has another form or no value, names an unknown section, drops a key that the section
                does not have, or its value is not YAML.
        """
        dotted, equals, given = text.partition("=")
        section, _, key = dotted.strip().partition(".")
        if section == "start" and equals:
            return self._with_start(text, dotted, given)
        if not equals or not key:
            raise InputError(f"--set {text}: expected section.key=value, such as train.epochs=3")
        if section not in SECTIONS:
            raise InputError(f"--set {text}: unknown section {section!r}{did_you_mean(section, list(SECTIONS))}")
        if section == "record":
            raise InputError(f"--set {text}: launch and resume write the section record; it cannot be given")
        option, below, rest = key.partition(".")
        if below:
            raise InputError(
                f"--set {text}: expected section.key=value; write --set '{section}.{option}={{{rest}: ...}}'"
            )
        keys = self.values.get(section) or {}
        if not isinstance(keys, dict):
            return self  # make_sweep_config refuses the section
        value, node = _parse(f"--set {dotted}", given)
        if node is None:
            raise InputError(f"--set {text}: the value is empty; {dotted}=null drops the key, for its default")
        if value is None and key not in keys:
            raise InputError(
                f"--set {text}: there is no {section}.{key} to drop{did_you_mean(key, list(map(str, keys)))}"
            )
        keys = {**keys, key: value} if value is not None else {k: v for k, v in keys.items() if k != key}
        lines = {path: line for path, line in self.lines.items() if path[:2] != (section, key)}
        return replace(self, values={**self.values, section: keys}, lines={**lines, (section, key): None})

    def _with_start(self, text: str, dotted: str, given: str) -> Source:
        """Return a copy with the list of `start:` set, or dropped by null.

        Raises:
            InputError: the text is not `start=[...]`.
        """
        value, node = _parse(f"--set {dotted}", given)
        if dotted.strip() != "start" or node is None:
            raise InputError(f"--set {text}: start is a list; write --set 'start=[...]' as a whole, or start=null")
        lines = {path: line for path, line in self.lines.items() if path[0] != "start"}
        return replace(self, values={**self.values, "start": value}, lines={**lines, ("start",): None})


def load_sweep_config(path: Path | str, overrides: Sequence[str] = ()) -> SweepConfig:
    """Read a sweep's YAML.

    Args:
        path: a file, or the bare name of a shipped one, which a file of that name hides.
        overrides: texts of the form `section.key=value`; null as the value drops the key.

    Raises:
        InputError: the file is missing or no YAML, an override cannot be applied, or else all that is wrong with the
            config, each problem with its line.
    """
    name, text = _find(Path(path))
    source = _read(name, text)
    if source.values.get("record") and Path(path).name != RUN_CONFIG:
        _, location = source.location(("record",))
        raise InputError(f"{location}: launch and resume write the section record into {RUN_CONFIG}; remove it here")
    for text in overrides:
        source = source.override(text)
    try:
        return make_sweep_config(source.values, Path(name).parent)
    except ConfigErrors as error:
        located = sorted((source.location(path_of_key), sentence) for path_of_key, sentence in error.problems)
        raise InputError("\n".join(f"{location}: {sentence}" for (_, location), sentence in located)) from None


def dump(config: SweepConfig) -> str:
    """Return YAML that load_sweep_config reads back as an equal config."""
    return yaml.dump(to_sections(config), Dumper=NumberDumper, sort_keys=False, default_flow_style=None, width=120)


def yaml_line(value: Any) -> str:
    """Return a value as YAML in one line, as `load_sweep_config` reads it."""
    text = yaml.dump(value, Dumper=NumberDumper, sort_keys=False, default_flow_style=True, width=10**6)
    return text.removesuffix("...\n").strip()


class NumberDumper(yaml.SafeDumper):
    """Quotes the strings that NumberLoader would read as numbers, such as the commit 12e4567."""

    yaml_implicit_resolvers = NumberLoader.yaml_implicit_resolvers


def _find(path: Path) -> tuple[str, str]:
    """Return the name and text of a file, or of a space shipped with voxtune."""
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


def _parse(name: str, text: str) -> tuple[Any, yaml.Node | None]:
    """Return the value of a YAML text and its node. name: of the text, for errors."""
    try:
        loader = NumberLoader(text)
        node = loader.get_single_node()
        return None if node is None else loader.construct_document(node), node
    except (yaml.YAMLError, ValueError) as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or error
        raise InputError(f"{name}:{mark.line + 1 if mark else 1}: cannot be read as YAML: {problem}") from None


def _read(name: str, text: str) -> Source:
    """Return the values in a YAML text and their lines."""
    values, node = _parse(name, text)
    if not isinstance(values, dict):
        raise InputError(f"{name}:1: expected the sections {', '.join(SECTIONS)}")
    lines: dict[KeyPath, int | None] = {}
    repeated = []
    for path, line in _lines(node):
        if path in lines:
            repeated.append(f"{name}:{line}: {key_text(path)} is written twice, first in line {lines[path]}; keep one")
        lines.setdefault(path, line)
    if repeated:
        raise InputError("\n".join(repeated))
    return Source(name, values, lines)


def _lines(node: yaml.Node | None, path: KeyPath = ()) -> Iterator[tuple[KeyPath, int]]:
    """Yield each key of the nested mappings and lists in a document, as deep as a sweep's YAML goes, and its line."""
    if isinstance(node, yaml.MappingNode) and len(path) < 5:
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                yield (*path, key.value), key.start_mark.line + 1
                yield from _lines(value, (*path, key.value))
    elif isinstance(node, yaml.SequenceNode) and len(path) < 3:
        for index, item in enumerate(node.value):
            yield (*path, index), item.start_mark.line + 1
            yield from _lines(item, (*path, index))
