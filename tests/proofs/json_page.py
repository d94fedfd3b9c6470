"""The page docs/json.md: what the verbs print with --json, from the models in tune/analysis/json_output.

python tests/proofs/json_page.py     write docs/json.md
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tune.analysis.json_output.outputs import OUTPUTS, json_schema
from tune.analysis.trial_rows import COLUMN_MEANINGS

PAGE = Path(__file__).parents[2] / "docs/json.md"
HEAD = """# Output for programs

With `--json` a verb prints one JSON object on standard output, and messages on standard error. Exit codes are as
without it; an error (code 2) has no JSON. The key `schema` names the verb and a version: within a version, keys are
only added. What is unknown is `null`, never NaN. `voxtune trials` and `voxtune curves` take a file, or `-` for standard
output, after `--json`.

```
voxtune status RUN --json | jq '.trials[] | select(.status == "failed") | .error'
voxtune trials RUN --json - | jq -r '.rows[] | [.number, .score, .params_lr] | @tsv'
```

This page is made by `make docs` from `tune/analysis/json_output`; do not edit it.
"""
TABLE_HEAD = "| key | type | meaning |\n| --- | --- | --- |"


def json_page() -> str:
    """Return the page as Markdown: a section per verb, then the objects inside them, each once."""
    schemas = {verb: json_schema(verb) for verb in OUTPUTS}
    inner = {name: schema for of_verb in schemas.values() for name, schema in of_verb.get("$defs", {}).items()}
    verbs = "".join(section(f"`voxtune {verb} --json`", schema) for verb, schema in schemas.items())
    objects = "".join(section(title(name), schema, level=3) for name, schema in sorted(inner.items()))
    return f"{HEAD}{verbs}\n## Objects inside\n{objects}\n{columns()}"


def columns() -> str:
    """Return the section on the columns of `voxtune trials`."""
    rows = [f"| `{name}` | {meaning} |" for name, meaning in COLUMN_MEANINGS.items()]
    return "\n".join(["## Columns of `voxtune trials`", "", "| column | meaning |", "| --- | --- |", *rows]) + "\n"


def section(heading: str, schema: dict[str, Any], level: int = 2) -> str:
    """Return the section of an object."""
    rows = [f"| `{key}` | {type_text(field)} | {field['description']} |" for key, field in schema["properties"].items()]
    return f"\n{'#' * level} {heading}\n\n{schema['description']}\n\n" + "\n".join([TABLE_HEAD, *rows]) + "\n"


def type_text(field: dict[str, Any]) -> str:
    """Return the type of a field in words."""
    if "const" in field:
        return f"`{field['const']}`"
    if "enum" in field:
        return " or ".join(f"`{value}`" for value in field["enum"])
    if "anyOf" in field:
        return " or ".join(map(type_text, field["anyOf"]))
    if "$ref" in field:
        name = title(field["$ref"].rpartition("/")[2])
        return f"[{name}](#{name.replace(' ', '-')})"
    match field.get("type"):
        case "array":
            return f"list of {type_text(field['items'])}"
        case "object":
            values = field.get("additionalProperties", True)
            return "object" if values is True else f"object of {type_text(values)}"
    return str(field.get("type", "any"))


def title(name: str) -> str:
    """Return what an object inside is called: trial of TrialItem."""
    return re.sub(r"(?<!^)(?=[A-Z])", " ", name.removesuffix("Item")).lower()


if __name__ == "__main__":
    PAGE.write_text(json_page())
