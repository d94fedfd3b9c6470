"""The JSON schema of a sweep's YAML, made from the models that check it, for editors and other programs.

It has no rule on several keys, such as that of `grace_period` and `val_freq`: `voxtune check` has those.
"""

from __future__ import annotations

from typing import Any, get_origin

from trainable.core.config import TrainConfig
from trainable.core.option_info import INFO
from trainable.core.options import option_names
from tune.spec.kinds import KINDS_OF_TYPE, Choice, LogUniform, QUniform
from tune.spec.prior import DEVIATIONS
from tune.spec.sections import Budget, Confirm, EarlyStopping, Objective, Resources, Searcher
from tune.spec.sweep_config import RESERVED_OPTIONS, STUDY_FIELDS, SweepConfig

Schema = dict[str, Any]
DIALECT = "https://json-schema.org/draft/2020-12/schema"
# What is read besides an option's own values: `amp: true` as fp16, and the year 2021 without quotes.
OTHER_SPELLINGS: dict[str, Schema] = {"amp": {"type": "boolean"}, "labels": {"type": "integer"}}
WEIGHTS: Schema = {
    "description": "How likely each value of the choice is the best.",
    "type": "object",
    "properties": {"weights": {"type": "array", "items": {"type": "number", "exclusiveMinimum": 0}, "minItems": 1}},
    "additionalProperties": False,
    "required": ["weights"],
}


def sweep_schema() -> Schema:
    """Return the schema of a sweep's YAML: its sections, the options of `train:`, the ranges of `space:`."""
    options = option_schemas()
    train = {name: {"$ref": f"#/$defs/{name}"} for name in options if name not in RESERVED_OPTIONS}
    train["focal_loss"] = {"type": "boolean", "description": "true is short for base_loss: focal."}
    fields = SweepConfig.model_fields
    ranges = {f"range_of_{name}": search_range(name, options[name]) for name in option_names(role="recipe")}
    return {
        "$schema": DIALECT,
        "title": "A sweep of voxtune",
        **closed(
            {
                "study": {"description": "What is searched for, and when the sweep ends.", **closed(study_fields())},
                "early_stopping": section(EarlyStopping),
                "searcher": section(Searcher),
                "resources": section(Resources),
                "train": {"description": fields["train"].description, **closed(train)},
                "start": start(options),
                "space": {
                    "description": fields["space"].description,
                    "minProperties": 1,
                    **closed({name: parameter(name, options[name]) for name in option_names(role="recipe")}),
                },
            }
        ),
        "required": ["space"],
        "$defs": options | ranges | {"when": conditions(options), "weights": WEIGHTS},
    }


def closed(properties: Schema) -> Schema:
    """Return the schema of a mapping with no other keys than these."""
    return {"type": "object", "properties": properties, "additionalProperties": False}


def section(model: Any) -> Schema:
    """Return the schema of a section from its model, with the model's first sentence as its description."""
    return {"description": model.__doc__.strip(), **closed(fields_of(model))}


def fields_of(model: Any) -> Schema:
    """Return the schema of each field of a model, without the titles that pydantic adds."""
    properties: Schema = model.model_json_schema()["properties"]
    return {
        name: {key: value for key, value in field.items() if key not in ("title", INFO)}
        for name, field in properties.items()
    }


def study_fields() -> Schema:
    """Return the fields of the section `study:`, which are of several models."""
    own = {name: field for name, field in fields_of(SweepConfig).items() if name in STUDY_FIELDS}
    own["confirm"] = {**section(Confirm), "type": ["object", "null"]}
    return {**fields_of(Objective), **fields_of(Budget), **own, "mode": {"const": "max"}}


def option_schemas() -> Schema:
    """Return the schema of each training option by its name."""
    schemas = fields_of(TrainConfig)
    for name, other in OTHER_SPELLINGS.items():
        described = {key: schemas[name].pop(key) for key in ("description", "default") if key in schemas[name]}
        schemas[name] = {**described, "anyOf": [*schemas[name].get("anyOf", [schemas[name]]), other]}
    return schemas


def start(options: Schema) -> Schema:
    """Return the schema of the section `start:`: recipes as options, or as the name or file of one."""
    recipe = {name: {"$ref": f"#/$defs/{name}"} for name in option_names(role="recipe")}
    names: list[Schema] = [{"required": [name]} for name in recipe]
    given = {**closed({"name": {"type": "string"}, **recipe}), "anyOf": names}
    items: Schema = {"anyOf": [{"type": "string", "minLength": 1}, given]}
    return {"description": SweepConfig.model_fields["start"].description, "type": "array", "items": items}


def parameter(name: str, option: Schema) -> Schema:
    """Return the schema of an option's entry in `space:`: a range, or a list of ranges."""
    one = {"$ref": f"#/$defs/range_of_{name}"}
    entries = [one, {"type": "array", "items": one, "minItems": 1}]
    return {"description": option["description"], "anyOf": entries}


def search_range(name: str, option: Schema) -> Schema:
    """Return the schema of a range of an option, with its condition and prior."""
    when = {"$ref": "#/$defs/when"}
    kinds = KINDS_OF_TYPE.get(TrainConfig.model_fields[name].annotation, (Choice,))
    ranges: list[Schema] = []
    for kind in kinds:
        keys = {kind.key: range_of(kind, name, option), "when": when, "prior": prior_of(kind, name)}
        ranges.append({**closed(keys), "required": [kind.key]})
    return {"anyOf": ranges}


def prior_of(kind: Any, name: str) -> Schema:
    """Return the schema of `prior:` of a range of this kind."""
    if kind is Choice:
        return {"$ref": "#/$defs/weights"}
    at = {"allOf": [{"$ref": f"#/$defs/{name}"}, {"type": "number"}]}
    return {**closed({"at": at, "confidence": {"enum": list(DEVIATIONS)}}), "required": ["at"]}


def range_of(kind: Any, name: str, option: Schema) -> Schema:
    """Return the schema of what follows a kind, such as `uniform:`."""
    value = {"$ref": f"#/$defs/{name}"}
    if kind is Choice:
        return {"type": "array", "items": value, "minItems": 1, "uniqueItems": True}
    number: Schema = {"allOf": [value, {"type": "number"}]}
    if kind is LogUniform:
        number = {"allOf": [value, {"type": "number", "exclusiveMinimum": 0}]}
    items: list[Schema] = [number, number] + [{"type": "number", "exclusiveMinimum": 0}] * (kind is QUniform)
    return {"type": "array", "prefixItems": items, "items": False, "minItems": len(items), "description": kind.form}


def conditions(options: Schema) -> Schema:
    """Return the schema of `when:`: other options, each with a value, or a list of values of which it must have one."""
    allowed = {}
    for name in options:
        value = {"$ref": f"#/$defs/{name}"}
        several = {"type": "array", "items": value, "minItems": 1}
        is_list = get_origin(TrainConfig.model_fields[name].annotation) is tuple
        allowed[name] = several if is_list else {"anyOf": [value, several]}
    return {"description": "The option is searched only if all of these hold.", **closed(allowed)}
