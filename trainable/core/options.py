"""What is derived from TrainConfig's fields: words for errors and docs, configs from plain values, files of options."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from trainable.core.config import Role, TrainConfig
from trainable.core.errors import InputError
from trainable.core.files import atomic_write_text

CALL_OPTIONS = ("resume", "test_only", "save_predictions", "lesion_wise")  # not of the training itself
PAGE_HEAD = """# Options of a training

Made from `trainable/core/config.py` and `tests/proofs/option_proofs.py` by `make docs`; do not edit. Each option is a flag of
`train.py` (`--lr 1e-3`, `--target_shape 96 96 96`, `--residual` or `--no-residual`) and a key of `--config FILE`. A
sweep may fix it under `train:`, and search those of the groups network, patches, loss, optimizer, scheduler and
augmentation under `space:`; a launch itself sets output_dir, resume, test_only, seed and metric. *On resume* says
whether `--resume` may change it; *guide* names the section on it in the guide of the script that this trainer grew
from. `make proofs` runs each option's tests with that option always at its default (in a few places with a line
changed) and shows that they then fail.
"""
TABLE_HEAD = """| option | default | allowed | unit | meaning | on resume | guide | proved by |
| --- | --- | --- | --- | --- | --- | --- | --- |"""


def field_metadata(field: FieldInfo) -> dict[str, str]:
    """The facts that option() notes of a field, as text."""
    assert isinstance(field.json_schema_extra, dict)
    return {key: str(value) for key, value in field.json_schema_extra.items()}


def fields_of_role(*roles: Role) -> list[str]:
    """Names of the options with one of these roles, in the order in which they are written."""
    return [name for name, field in TrainConfig.model_fields.items() if field_metadata(field)["role"] in roles]


def fixed_on_resume() -> list[str]:
    """Names of the options that a resumed training cannot change."""
    return [name for name, field in TrainConfig.model_fields.items() if field_metadata(field)["fixed"] == "True"]


def allowed(name: str) -> str:
    """What an option may be, in words: "one of adam, adamw, sgd", "a number > 0"."""
    field = TrainConfig.model_fields[name]
    kind: Any = field.annotation
    if get_args(kind) and get_args(kind)[-1] is type(None):
        kind = get_args(kind)[0]
    if get_args(kind) and all(isinstance(argument, str) for argument in get_args(kind)):
        return "one of " + ", ".join(get_args(kind))
    if get_args(kind):
        number = "whole numbers" if get_args(kind)[0] is int else "numbers"
        return f"{len(get_args(kind))} {number}"
    word = {int: "a whole number", float: "a number", bool: "true or false", Path: "a path"}[kind]
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    limits = [
        f"{sign} {getattr(check, key)}"
        for key, sign in signs.items()
        for check in field.metadata
        if getattr(check, key, None) is not None
    ]
    return " ".join([word, " and ".join(limits)]).strip()


def help_text(name: str) -> str:
    """An option in a sentence or two, and what it may be."""
    field = TrainConfig.model_fields[name]
    facts = field_metadata(field)
    unit = f", {facts['unit']}" if facts["unit"] else ""
    resume = "; cannot change on --resume" if facts["fixed"] == "True" else ""
    return f"{field.description} ({allowed(name)}{unit}; default {format_value(field.default)}{resume})"


def options_table(proofs: Mapping[str, str]) -> str:
    """The options as a page of Markdown, one table a group. proofs: the tests of each option, as Markdown."""
    tables: dict[str, list[str]] = {}
    for name, field in TrainConfig.model_fields.items():
        facts = field_metadata(field)
        resume = "fixed" if facts["fixed"] == "True" else "may change"
        cells = [f"`{name}`", format_value(field.default), allowed(name), facts["unit"], str(field.description), resume]
        row = "| " + " | ".join([*cells, facts["guide"], proofs[name]]) + " |"
        tables.setdefault(facts["group"], [TABLE_HEAD]).append(row)
    return PAGE_HEAD + "".join(f"\n## {group}\n\n" + "\n".join(rows) + "\n" for group, rows in tables.items())


def format_value(value: Any) -> str:
    """A default as one would type it."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "none"}[value]
    if isinstance(value, tuple):
        return " ".join(map(format_value, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def did_you_mean(name: str, names: list[str]) -> str:
    """' (did you mean X?)' where a name is close to one of names, else nothing."""
    close = difflib.get_close_matches(name, names, n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def validation_messages(error: ValidationError) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Each problem of a TrainConfig as (path of the key, sentence)."""
    for item in error.errors():
        path = item["loc"]
        name = str(path[0]) if path else ""
        if item["type"] == "extra_forbidden":
            yield path, f"unknown option {name!r}{did_you_mean(name, list(TrainConfig.model_fields))}"
        elif name in TrainConfig.model_fields:
            given = item["input"] if len(path) == 1 else f"{item['input']!r} (item {path[1]})"
            given = given if isinstance(given, str) and len(path) > 1 else repr(given)
            yield path, f"{name} is {given}; expected {allowed(name)}"
        else:
            yield path, item["msg"].removeprefix("Value error, ")


def make_config(values: dict[str, Any], source: str = "options") -> TrainConfig:
    """A TrainConfig from plain values, or InputError that names each problem."""
    try:
        return TrainConfig.model_validate(values)
    except ValidationError as error:
        raise InputError("\n".join(f"{source}: {sentence}" for _, sentence in validation_messages(error))) from None


def to_dict(config: TrainConfig, *, changed_only: bool = False) -> dict[str, Any]:
    """The options as values that JSON, YAML and weights-only checkpoints hold."""
    return config.model_dump(mode="json", exclude_defaults=changed_only)


def load_options(path: Path) -> dict[str, Any]:
    """The options in a YAML or JSON file: an exported recipe or a training_config.json."""
    try:
        values = yaml.load(path.read_text(), Loader=NumberLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path}: cannot be read as YAML or JSON: {error}") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected options as `name: value` lines")
    return values


def dump_yaml(values: dict[str, Any]) -> str:
    """Options as YAML that load_options reads, by libyaml where PyYAML has it: a tenth of the time."""
    return str(yaml.dump(values, Dumper=getattr(yaml, "CSafeDumper", yaml.SafeDumper), sort_keys=False))


def save_options(config: TrainConfig, path: Path) -> None:
    """Write training_config.json: all that a training is, without what belongs to one call of train.py."""
    options = {name: value for name, value in to_dict(config).items() if name not in CALL_OPTIONS}
    atomic_write_text(path, json.dumps(options, indent=2) + "\n")


class NumberLoader(yaml.SafeLoader):
    """A safe YAML loader that reads `1e-4` as the number it is, and `1:30` as text.

    YAML 1.1 asks for `1.0e-4`, and takes `1:30` for 90.
    """

    def construct_number(self, node: yaml.ScalarNode) -> Any:
        """As SafeLoader's, but of numbers to the base of 60."""
        if ":" in node.value:
            return node.value
        kind = node.tag.rpartition(":")[2]
        return self.construct_yaml_int(node) if kind == "int" else self.construct_yaml_float(node)


def _add_number_resolver() -> None:
    NumberLoader.yaml_implicit_resolvers = {k: list(v) for k, v in yaml.SafeLoader.yaml_implicit_resolvers.items()}
    NumberLoader.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
    )


_add_number_resolver()
for kind in ("int", "float"):
    NumberLoader.add_constructor(f"tag:yaml.org,2002:{kind}", NumberLoader.construct_number)
