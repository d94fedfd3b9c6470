"""Recipes in files, given by a path or by the name of a shipped one, such as nnunet."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from trainable.core.errors import InputError
from trainable.core.option_errors import did_you_mean


def shipped_recipes() -> dict[str, Path]:
    """Return the files of the recipes that are shipped with voxtune, by name."""
    folder = Path(str(resources.files("search_spaces"))) / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find_recipe(path: Path, *, folder: Path | None = None) -> Path:
    """Return the file of a recipe, given as a path or as the bare name of a shipped one, which a file hides.

    folder: where a relative path is looked for first, before the current folder.

    Raises:
        InputError: if there is neither.
    """
    shipped = shipped_recipes()
    for candidate in [path] if folder is None else [folder / path, path]:
        if candidate.is_file():
            return candidate
    if len(path.parts) == 1 and path.name.removesuffix(".yaml") in shipped:
        return shipped[path.name.removesuffix(".yaml")]
    close = did_you_mean(path.name.removesuffix(".yaml"), list(shipped))
    raise InputError(f"{path}: no such file{close}; shipped are {', '.join(shipped)}")
