"""Pytest plugin: an option has its default in every TrainConfig, in spite of the value that was given.

VOXTUNE_PIN_OPTION=lr pytest -p pin_option ... with this folder in PYTHONPATH. The checks of a config and what is
written of it (model_dump) keep the given value: only the effect is gone. Processes that a test starts are not pinned.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

from trainable.core.config import TrainConfig

VARIABLE = "VOXTUNE_PIN_OPTION"
READ = "__getattribute__"


def pinned(option: str) -> Callable[[TrainConfig, str], Any]:
    """Return the attribute access of a TrainConfig in which this option always has its default."""
    default = TrainConfig.model_fields[option].default
    checks = {check.func.__code__ for check in TrainConfig.__pydantic_decorators__.model_validators.values()}
    read = TrainConfig.__getattribute__

    def read_pinned(config: TrainConfig, name: str) -> Any:
        if name == option and sys._getframe(1).f_code not in checks:
            return default
        return read(config, name)

    return read_pinned


def pytest_configure() -> None:
    """Pin the option that the environment names."""
    setattr(TrainConfig, READ, pinned(os.environ[VARIABLE]))
