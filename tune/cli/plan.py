"""The verb that tells what a sweep would take, before it is launched."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trainable.core.errors import InputError
from trainable.core.logger import logger
from trainable.core.storage import is_there, place_of_data
from tune.cli.command import CacheDir, Data, Labels, Set, SkipBadCases, Space, Trials, app
from tune.cli.json_flag import Json, messages_on_stderr, print_json
from tune.spec.sections import Confirm
from tune.spec.sweep_config import SweepConfig
from tune.spec.sweep_file import load_sweep_config

if TYPE_CHECKING:
    from tune.planning.time_plan import GivenTime

Hours = Annotated[
    float | None,
    typer.Option(
        metavar="H",
        help="Choose trials, epochs, rungs and the size of the confirmation for this many hours in all; values that "
        "are set by --trials or --set stay.",
    ),
]


@app.command(epilog="Example: voxtune estimate brats --data DIR --gpus 1,2,4")
def estimate(
    space: Space,
    data: Data,
    trials: Trials = None,
    hours: Hours = None,
    confirm: Annotated[bool, typer.Option("--confirm", help="With --hours: keep time for a confirmation.")] = False,
    gpus: Annotated[
        str | None, typer.Option(metavar="N,...", help="Numbers of GPUs to tell of; by default 1,2,4,8.")
    ] = None,
    cache_dir: CacheDir = None,
    labels: Labels = None,
    skip_bad_cases: SkipBadCases = False,
    set_: Set = None,
    json_: Json = False,
) -> None:
    """Tell what a sweep would take here: time, GPU hours, memory and disk, measured in seconds and then simulated."""
    from tune.planning.time_plan import check_hours

    if hours is not None:
        check_hours(hours)
    require_data(data)
    with messages_on_stderr(json_):
        overrides = data_overrides(data, cache_dir, labels, skip_bad_cases=skip_bad_cases)
        own = user_overrides(set_, trials)
        config, given = with_confirm(load_sweep_config(space, [*overrides, *own]), confirm), given_keys(own)
        from tune.estimate import estimate as make_estimate  # after the YAML is checked: this imports torch
        from tune.estimate import read_gpus

        result = make_estimate(config, gpus=read_gpus(gpus), hours=hours, given=kept_keys(config, given))
    if json_:
        from tune.analysis.json_output.estimate import estimate_output

        print_json(estimate_output(result))
        return
    from tune.terminal.estimate_lines import estimate_lines

    logger.info("\n".join(["", *estimate_lines(result)]))


def require_data(data: str) -> None:
    """Raise InputError if the --data of a user is a folder that is missing, or a URI with keys."""
    if not is_there(place_of_data(data)):
        raise InputError(f"--data {data}: no such folder")


def user_overrides(set_: Sequence[str] | None, trials: int | None) -> list[str]:
    """Return the values of the YAML that --set and --trials replace, as SECTION.KEY=VALUE texts."""
    return [*(set_ or []), *[f"study.trials={trials}"] * (trials is not None)]


def data_overrides(
    data: Path | str | None, cache_dir: Path | None, labels: str | None = None, *, skip_bad_cases: bool = False
) -> list[str]:
    """Return the values of the YAML that the flags on cases replace, as SECTION.KEY=VALUE texts."""
    overrides = [
        f"train.{option}={json.dumps(str(place_of_data(folder)), ensure_ascii=False)}"
        for option, folder in (("data_dir", data), ("cache_dir", cache_dir))
        if folder is not None
    ]
    overrides += [f"train.labels={json.dumps(labels)}"] * (labels is not None)
    return overrides + ["train.skip_bad_cases=true"] * skip_bad_cases


def with_confirm(config: SweepConfig, confirm: bool) -> SweepConfig:
    """Return the config with a confirmation if that is asked for and the YAML has none."""
    return config.model_copy(update={"confirm": Confirm()}) if confirm and config.confirm is None else config


def time_to_plan_for(config: SweepConfig, hours: float, overrides: Sequence[str]) -> GivenTime:
    """Return the time of --hours, which began with this process; overrides: what the user has set.

    Raises:
        InputError: if it is no time.
    """
    from tune.planning.time_plan import GivenTime, check_hours

    check_hours(hours)
    return GivenTime(hours, time.monotonic(), kept_keys(config, given_keys(overrides)))


def given_keys(overrides: Sequence[str]) -> frozenset[str]:
    """Return the keys of SECTION.KEY=VALUE texts."""
    return frozenset(text.partition("=")[0].strip() for text in overrides)


def kept_keys(config: SweepConfig, keys: frozenset[str]) -> frozenset[str]:
    """Return the keys that a plan by time keeps: those of --set, and the YAML's own confirmation."""
    return keys | {"study.confirm"} if config.confirm is not None and config.confirm != Confirm() else keys
