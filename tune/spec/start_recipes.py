"""Reads the `start:` of a YAML: the recipes that a sweep tries after the default one, before any is drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trainable.core.errors import InputError
from trainable.core.option_errors import did_you_mean
from trainable.core.option_files import load_options
from trainable.core.options import format_value, option_names
from tune.spec.named_recipes import find_recipe
from tune.spec.space import DEFAULTS, KeyPath, Problem, Space
from tune.spec.space_reader import validated

FORM = "options, such as {optimizer: sgd, lr: 0.01}, or the name or file of a recipe, such as nnunet"


def read_start(raw: Any, space: Space, folder: Path | None) -> tuple[list[tuple[str, dict[str, Any]]], list[Problem]]:
    """Return the recipes of the section `start:`, each with its name, and what is wrong with the section.

    Args:
        raw: the section.
        space: of the sweep.
        folder: where files are looked for first; None for the current folder only.

    Returns:
        Of each recipe the name, "" without one, and the values of the searched options that are drawn in it: an option
        that the section leaves out is at its default or at the nearest value of its range.
    """
    if not isinstance(raw, list):
        return [], [(("start",), f"start is {raw!r}; expected a list, each item {FORM}")]
    recipes: list[tuple[str, dict[str, Any]]] = []
    problems: list[Problem] = []
    for index, item in enumerate(raw):
        path: KeyPath = ("start", index)
        try:
            name, options = _options_of(item, folder)
        except InputError as error:
            problems.append((path, f"start[{index}]: {error}"))
            continue
        is_file = isinstance(item, str)
        known, wrong = _checked(options, is_file=is_file)
        values, outside = complete_recipe(known, space)
        where = f"start[{index}] ({item})" if is_file else f"start[{index}]"
        if is_file and (wrong or outside):
            outside.append(("", "it is not a recipe of this space; --set start=null drops all recipes of start:"))
        problems += [(path if is_file else (*path, key), f"{where}: {text}") for key, text in [*wrong, *outside]]
        recipes.append((name, values))
    return recipes, problems


def recipe_of_file(file: Path, space: Space) -> dict[str, Any]:
    """Return the recipe of a space that has the options in a file, as complete_recipe does.

    Options in the file that are no part of a recipe, such as epochs, are left out.

    Raises:
        InputError: the file cannot be read, or its recipe is outside the space; the message has all reasons.
    """
    options, wrong = _checked(load_options(file), is_file=True)
    values, outside = complete_recipe(options, space)
    if wrong or outside:
        raise InputError("\n".join(f"{file}: {sentence}" for _, sentence in [*wrong, *outside]))
    return values


def complete_recipe(options: dict[str, Any], space: Space) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Return the recipe of a space that has these options.

    Args:
        options: of a recipe, as plain values; those that it leaves out are at their default, or, if they are searched,
            at the nearest value of their range.
        space: of the sweep.

    Returns:
        The values of the searched options that are drawn in it; and for each option that keeps the recipe out of the
        space its name and a sentence that says why, and what to do.
    """
    constants, values, problems = space.constants, dict[str, Any](), list[tuple[str, str]]()
    for parameter in space.parameters:
        name = parameter.name
        value, branch = options.get(name, DEFAULTS[name]), parameter.branch(constants | values)
        if branch is not None:
            values[name] = branch.kind.nearest(value)
            if name in options and values[name] != value:
                sentence = f"{name} is {format_value(value)}, outside its range {branch.describe()}"
                problems.append((name, f"{sentence}; widen the range, or leave {name} out"))
        elif name in options and value != DEFAULTS[name]:
            condition = f" (it is if {parameter.condition()})" if parameter.when else ""
            sentence = f"{name} is {format_value(value)}, but it is not searched in this recipe{condition}"
            problems.append((name, f"{sentence}; leave {name} out"))
    for name, value in options.items():
        if name in constants and value != constants[name]:
            always = "train: fixes" if name in space.fixed else "each trial has the default"
            sentence = f"{name} is {format_value(value)}, but {always} {format_value(constants[name])}"
            problems.append((name, f"{sentence}; search {name}, fix it so under train:, or leave it out"))
    return values, problems


def _options_of(item: Any, folder: Path | None) -> tuple[str, dict[str, Any]]:
    """Return the name and the options of an item of the section.

    Raises:
        InputError: it is neither options nor a file with some, or its name is no text.
    """
    if isinstance(item, str) and item:
        file = find_recipe(Path(item), folder=folder)
        return file.stem, load_options(file)
    if not isinstance(item, dict) or not item.keys() - {"name"}:
        raise InputError(f"{item!r} is no recipe; expected {FORM}")
    name = item.get("name", "")
    if not isinstance(name, str):
        raise InputError(f"name is {name!r}; expected a text, by which the recipe is known")
    return name, {option: value for option, value in item.items() if option != "name"}


def _checked(options: dict[str, Any], *, is_file: bool) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Return the options of a recipe as TrainConfig reads them, and the name of each wrong one with a sentence.

    is_file: options that are no part of a recipe, such as epochs, are left out, as a confirmation does with such a
    file; otherwise they are wrong.
    """
    known: dict[str, Any] = {}
    problems: list[tuple[str, str]] = []
    for name, value in options.items():
        if name not in DEFAULTS:
            problems.append((str(name), f"unknown option {name!r}{did_you_mean(str(name), list(DEFAULTS))}"))
        elif name in option_names(role="recipe"):
            try:
                known[name] = validated(name, value)
            except ValueError as error:
                problems.append((name, str(error)))
        elif not is_file:
            reason = "is part of the protocol or of how a training runs, not of a recipe"
            problems.append((name, f"{name} {reason}; fix it under train:"))
    return known, problems
