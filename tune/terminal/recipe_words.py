"""Recipes in few words: only the options that differ from the default recipe."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from trainable.core.options import to_dict
from tune.run.results import Run, TrialResult
from tune.spec.space import DEFAULTS

SHORT_NAMES = {
    "loss_weights": "w",
    "weight_decay": "wd",
    "accumulation_steps": "accumulate",
    "gradient_clipping": "clip",
    "augment_strength": "augment",
}
DEFAULT = "the default recipe"


class RecipeWords:
    """Says in which options a run's trials differ from its default recipe, that of trial 0."""

    def __init__(self, run: Run) -> None:
        self.run = run

    @cached_property
    def default(self) -> dict[str, Any]:
        """All options of the default recipe."""
        return to_dict(self.run.config.base_config())

    def differing(self, trial: TrialResult) -> dict[str, Any]:
        """Return the searched options of a trial that are not as in the default recipe, in the order of the space."""
        searched = self.run.config.space.default_values()
        return {
            name: value
            for name, value in trial.values.items()
            if value != (self.default[name] if name in searched else DEFAULTS[name])
        }

    def short(self, trial: TrialResult) -> str:
        """Return those options as text: "sgd lr=.0058 poly w=2:1"."""
        return short_recipe(self.differing(trial)) or DEFAULT


def short_recipe(values: Mapping[str, Any]) -> str:
    """Return options as text: a word without its name, true as the name only, lists with colons.

    An option named after the word before it is shown without that: "step size=40 gamma=.1" of step_size and step_gamma.
    """
    parts, word = list[str](), ""
    for name, value in values.items():
        named_after = bool(word) and name.startswith(f"{word}_")
        parts.append(short_option(name.removeprefix(f"{word}_") if named_after else name, value))
        if not named_after:
            word = value if isinstance(value, str) else ""
    return " ".join(parts)


def short_option(name: str, value: Any) -> str:
    """Return one option as text."""
    name = SHORT_NAMES.get(name, name)
    if isinstance(value, bool):
        return name if value else f"no {name}"
    return value if isinstance(value, str) else f"{name}={short_number(value)}"


def short_number(value: Any) -> str:
    """Return a number with two significant digits and without a zero before its point; a list's with colons between."""
    if isinstance(value, list | tuple):
        return ":".join(map(short_number, value))
    text = f"{value:.2g}" if isinstance(value, float) else str(value).lower()
    return text[1:] if text.startswith("0.") else text.replace("e-0", "e-").replace("e+0", "e")
