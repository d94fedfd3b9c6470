"""The prepared cases of a run on the node where a process trains.

This module does without Ray, as the processes do that train one network together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from trainable.core.config import TrainConfig
from trainable.data.cache import CacheError, changed_cases
from trainable.data.local_cases import cases_here
from trainable.data.prepare import Data
from trainable.data.split import load_split
from tune.run.provenance import load_contents, spacing_of_run
from tune.run.run_dir import RunDir


def cases_of(config: TrainConfig) -> Data:
    """Return the prepared cases and the split that the driver has put into a recipe."""
    assert config.cache_dir is not None
    assert config.split_file is not None
    return Data(config.cache_dir, load_split(config.split_file))


def cases_as_begun(
    data: Data, config: TrainConfig, contents_file: Path, alive: Callable[[], None] = lambda: None
) -> Data:
    """Return the cases of a run as this machine has them; before that prepare what it lacks.

    Args:
        data, config, alive: as for cases_here.
        contents_file: the run's cases.json.

    Raises:
        CacheError: if a case is missing and cannot be prepared here, or is not what it was when the run began.
    """
    begun = load_contents(contents_file)
    data = cases_here(replace(data, target=spacing_of_run(contents_file.parent)), config, begun, alive)
    if changed := changed_cases(data.contents, begun):
        raise CacheError(f"cases have changed since the sweep began: {changed}; restore them, or launch a new sweep")
    return data


def cases_of_training(config: TrainConfig, contents_file: Path | None) -> Data:
    """Return the prepared cases of a training; those of a run are prepared here first if this machine lacks some.

    contents_file: the run's cases.json; None to compare with none.

    Raises:
        CacheError: as cases_as_begun.
        InputError: if the split cannot be read.
    """
    data = cases_of(config)
    if contents_file is None:
        return data
    # prepared with the run's split: in a run of an older version its training cases tell the voxel size
    as_in_the_run = config.model_copy(update={"split_file": RunDir(contents_file.parent).split})
    return cases_as_begun(data, as_in_the_run, contents_file)
