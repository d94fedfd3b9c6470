"""The prepared cases of a sweep on a machine that may lack them: a node whose cache is on a disk of its own."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

from trainable.core.config import TrainConfig
from trainable.core.counted import counted
from trainable.core.errors import InputError
from trainable.core.logger import logger
from trainable.core.storage import Uri, is_there
from trainable.data.cache import CacheError, changed_cases
from trainable.data.fetch import fetched_folder
from trainable.data.prepare import Data, prepare_data

LOOK_SECONDS = 5.0  # between two looks at whether the preparation gets on


def cases_here(
    data: Data, config: TrainConfig, begun: Mapping[str, str], alive: Callable[[], None] = lambda: None
) -> Data:
    """Return the cases as this machine has them; before that prepare what it lacks, or has otherwise than they began.

    Processes that do so at once prepare each case once, see `prepare`. A case that was prepared otherwise on purpose
    (as its files have changed) stays so: compare the contents of the result with `begun`.

    Args:
        data: the folder of the cache, the split and the voxel size.
        config: by which cases are prepared, with the same folder as cache_dir; its split_file names those of `data`.
        begun: contents of the cases when a run began, by name; {} if they are not known.
        alive: called in between while cases get ready, by the calling thread.

    Raises:
        CacheError: if a case is missing and cannot be prepared here.
    """
    lack = what_is_missing(data, begun)
    if not lack or config.data_dir is None:
        return data
    if not is_there(config.data_dir):
        raise CacheError(f"{lack}; {config.data_dir}, to prepare it from, is not there either")
    cases = counted(len(data.split.names), "case")
    logger.info(f"{platform.node()} prepares what {data.folder} lacks of {cases}")
    start = time.monotonic()
    with ThreadPoolExecutor(1, "prepare") as thread:
        task, stamp = thread.submit(prepare_data, config, quiet=True, begun=True, begun_with=data.target), 0
        while not wait([task], LOOK_SECONDS).done:
            if (now := last_change(data.folder, config.data_dir)) != stamp:
                stamp = now
                alive()
    try:
        task.result()
    except InputError as error:
        raise CacheError(str(error)) from None
    logger.info(f"prepared in {time.monotonic() - start:.1f} s")
    return Data(data.folder, data.split, target=data.target)


def what_is_missing(data: Data, begun: Mapping[str, str]) -> str:
    """Return what of the cases is not prepared here, or not as it was, in words; "" if nothing is."""
    try:
        changed = changed_cases(data.contents, begun)
    except CacheError as error:
        return str(error)
    return changed and f"{data.folder} has other content of {changed}"


def last_change(cache: Path, data_dir: Path | Uri) -> int:
    """Return when a case was last prepared in the cache, or a file of it fetched from a URI, in ns; 0 without a cache.

    data_dir: of which the cases are.
    """
    places = [cache, fetched_folder(data_dir, cache)] if isinstance(data_dir, Uri) else [cache]
    return max((place.stat().st_mtime_ns for place in places if place.exists()), default=0)
