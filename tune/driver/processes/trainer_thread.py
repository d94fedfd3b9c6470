"""The one thread of a process that trains one recipe after another, and what garbage collection leaves out there."""

from __future__ import annotations

import gc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any


def run_in_trainer_thread(work: Callable[[], Any]) -> Any:
    """Return work(), called in the one thread of this process that trains, which is kept for all its trials.

    Ray gives each trial a new thread, but what cudnn has planned is kept per thread, and takes a while to plan.
    """
    return trainer_thread().submit(work).result()


@lru_cache(1)
def trainer_thread() -> ThreadPoolExecutor:
    """Return the executor of the thread that trains in this process, always the same one."""
    return ThreadPoolExecutor(1, "trainer")


@lru_cache(1)
def freeze_imports() -> None:
    """Exclude what this process has imported before the first call from garbage collection; do nothing in later calls.

    Collecting these objects took 0.3 s per trial.
    """
    gc.collect()
    gc.freeze()
