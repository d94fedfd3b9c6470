"""The functions that need Ray or torch, which are imported when one of them is called."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from trainable.core.errors import InputError
from trainable.core.files import user_path
from trainable.core.storage import place_of_data
from tune.spec.sweep_file import load_sweep_config
from voxtune.reader import RunReader

if TYPE_CHECKING:
    from trainable.core.config import TrainConfig
    from trainable.model.unet3d import UNet3D


def launch(
    space: str | Path,
    *,
    data: str | Path,
    out: str | Path,
    trials: int | None = None,
    hours: float | None = None,
    overrides: Mapping[str, Any] | None = None,
    warm_start: Sequence[str | Path] = (),
    storage: str | None = None,
    address: str | None = None,
    note: str | None = None,
    report: bool = True,
) -> RunReader:
    """Run a sweep to its end, as `voxtune launch` does. `voxtune resume OUT` goes on with an interrupted one.

    Call it under `if __name__ == "__main__":`, because the cases are prepared in processes that import the script.

    Args:
        space: YAML of the sweep: a file, or the name of a shipped one such as "brats".
        data: folder with one sub-folder per case, or its URI, such as s3://bucket/cases.
        out: folder of the sweep, made if missing; refused if it contains a sweep or any sub-folder.
        trials: number of trials; None for that of the YAML or the overrides.
        hours: choose trials, epochs and rungs for this time, but for those that trials or overrides give.
        overrides: values that replace those of the YAML, such as {"train.epochs": 3}; None drops a key.
        warm_start: folders of runs whose trials the sweep begins with.
        storage: where Ray keeps checkpoints, a folder or a URI; None for OUT/ray.
        address: of a Ray cluster; None to start one on this machine.
        note: what the sweep is for.
        report: keep OUT/report.html up to date.

    Returns:
        The run as it is at the end.

    Raises:
        InputError: for wrong options or data, before anything is trained.
        SystemExit: if the sweep was ended by Ctrl-C, SIGTERM, a full disk, a lost cluster or, with
            resources.fail_fast, a failed trial; it can be resumed.
    """
    from tune.driver.sweep import launch as launch_sweep  # here: this imports Ray and torch
    from tune.planning.time_plan import GivenTime, check_hours

    if hours is not None:
        try:
            hours = float(hours)
        except (TypeError, ValueError):
            raise InputError(f"hours is {hours!r}; expected a number of hours above 0, such as 12 or 0.5") from None
        check_hours(hours)
    values = {"train.data_dir": str(place_of_data(data)), **(overrides or {})}
    if trials is not None:
        values["study.trials"] = trials
    config = load_sweep_config(space, [override_text(key, value) for key, value in values.items()])
    earlier = [user_path(folder).resolve() for folder in warm_start]
    given = None if hours is None else GivenTime(hours, time.monotonic(), frozenset(values))
    run = launch_sweep(
        config, user_path(out).resolve(), address=address, storage=storage, earlier=earlier, note=note, report=report,
        given_time=given,
    )  # fmt: skip
    return RunReader(run)


def override_text(key: str, value: Any) -> str:
    """Return an override as text, KEY=VALUE; of a path as text and of numpy as Python's own numbers.

    Raises:
        InputError: for a value that is nothing of a YAML.
    """

    def plain(item: Any) -> Any:
        if isinstance(item, PurePath):
            return str(item)
        return item.tolist()  # of numpy; others have no such method

    try:
        return f"{key}={json.dumps(value, ensure_ascii=False, default=plain)}"
    except (TypeError, ValueError, AttributeError):
        raise InputError(
            f"overrides: {key} is {value!r}; expected None, text, a path, a number, a bool, or a list or dict of these"
        ) from None


def load_model(path: str | Path, device: str = "cpu") -> tuple[UNet3D, TrainConfig]:
    """Load a trained network.

    Args:
        path: a checkpoint, or a folder with one (RUN/best, RUN/retrain/NAME): best_model.pth, else latest.pth.
        device: to put the network on, such as "cuda".

    Returns:
        The network in eval mode, and the config that it was trained with. The network maps a batch of normalised
        images, float32 (N, 4, D, H, W), to a list of one tensor: logits (N, 3, D, H, W) of the regions WT, TC and ET.

    Raises:
        InputError: if the file is missing, damaged or not a checkpoint of this version's format; or if torch cannot use
            the device.
    """
    import torch

    from trainable.training.checkpoint import load_network

    try:
        place = torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:  # the latter without CUDA in torch
        reason = str(error).splitlines()[0]
        raise InputError(f"device is {device!r}, which torch cannot use here: {reason}") from None
    return load_network(user_path(path), place)
