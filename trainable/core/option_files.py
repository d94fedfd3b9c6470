"""Files of options: an exported recipe in YAML, a training's training_config.json."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

from trainable.core.config import TrainConfig
from trainable.core.errors import InputError
from trainable.core.files import atomic_write_text
from trainable.core.options import option_names, to_dict


def load_options(path: Path) -> dict[str, Any]:
    """Return the options in a YAML or JSON file; neither their names nor their values are checked.

    Raises:
        InputError: if the file is missing, is neither YAML nor JSON, or is not a mapping (an empty file is not).
    """
    try:
        values = yaml.load(path.read_text(), Loader=NumberLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path}: cannot be read as YAML or JSON: {error}") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected options as `name: value` lines")
    return values


def dump_yaml(values: dict[str, Any]) -> str:
    """Return options, by name, as YAML for load_options; by libyaml, if PyYAML has it, in a tenth of the time."""
    return str(yaml.dump(values, Dumper=getattr(yaml, "CSafeDumper", yaml.SafeDumper), sort_keys=False))


def save_options(config: TrainConfig, path: Path, *, fsync: bool = True) -> None:
    """Write all options of a training except those of one call of the program, as JSON (training_config.json).

    fsync: as for atomic_write.
    """
    one_call = option_names(one_call=True)
    options = {name: value for name, value in to_dict(config).items() if name not in one_call}
    atomic_write_text(path, json.dumps(options, indent=2) + "\n", fsync=fsync)


class NumberLoader(yaml.SafeLoader):
    """A safe YAML loader that reads `1e-4` as a number, `1:30` as text and `010` as 10.

    YAML 1.1 requires `1.0e-4`, and reads `1:30` as 90 and `010` as 8.
    """

    def construct_number(self, node: yaml.ScalarNode) -> Any:
        """Return the number of a node as SafeLoader does.

        Return its text if it is a number to the base of 60, and the decimal number if it is one to the base of 8.
        """
        if ":" in node.value:
            return node.value
        if re.fullmatch(r"[-+]?0[0-7_]+", node.value):
            return int(node.value.replace("_", ""))
        kind = node.tag.rpartition(":")[2]
        return self.construct_yaml_int(node) if kind == "int" else self.construct_yaml_float(node)


def _add_number_resolver() -> None:
    """Register what NumberLoader reads as numbers."""
    NumberLoader.yaml_implicit_resolvers = {k: list(v) for k, v in yaml.SafeLoader.yaml_implicit_resolvers.items()}
    NumberLoader.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
    )
    for kind in ("int", "float"):
        NumberLoader.add_constructor(f"tag:yaml.org,2002:{kind}", NumberLoader.construct_number)


_add_number_resolver()
