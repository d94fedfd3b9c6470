"""Arms of a confirmation from files: a user's own recipe, or one that is shipped, such as nnunet."""

from __future__ import annotations

from pathlib import Path

from trainable.core.config import TrainConfig
from trainable.core.errors import InputError
from trainable.core.logger import logger
from trainable.core.option_files import load_options
from trainable.core.options import make_config, option_names, to_dict
from tune.confirmation.plan import Arm, recipe_values
from tune.spec.named_recipes import find_recipe


def read_recipe(path: Path, base: TrainConfig) -> Arm:
    """Return the recipe in a file as an arm: its options of role recipe in place of the sweep's.

    Options of the protocol (epochs, cases, validation) and of one machine are the sweep's for all arms; those in which
    the file differs are named in a message, and ignored.

    Args:
        path: as for find_recipe.
        base: the sweep's default recipe.

    Raises:
        InputError: if there is no such file, or its options do not make a recipe.
    """
    try:
        file = find_recipe(path)
    except InputError as error:
        raise InputError(f"--recipe {error}") from None
    values = load_options(file)
    config = make_config({**to_dict(base), **values}, str(file))
    recipe, now, sweep = option_names(role="recipe"), to_dict(config), to_dict(base)
    if ignored := [name for name in values if name in now and name not in recipe and now[name] != sweep[name]]:
        kept = ", ".join(f"{name} ({sweep[name]})" for name in ignored)
        logger.info(f"{file}: the sweep's own values are kept for {kept}")
    return Arm(file.stem, recipe_values(config))
