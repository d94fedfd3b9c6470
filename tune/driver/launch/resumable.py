"""What `resume` checks before it goes on with a run: what was asked to change, the folder, the cases."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from trainable.core.errors import InputError
from trainable.core.option_errors import did_you_mean
from trainable.core.storage import Uri, is_there, is_uri, place_of_data
from trainable.data.cache import changed_cases
from trainable.data.prepare import prepare_data
from trainable.training.training_dir import CHECKPOINT_FORMAT
from tune.run.provenance import digest_of, load_contents, save_contents
from tune.run.results import read_run
from tune.run.run_dir import RunDir
from tune.run.snapshot import check_storage, name_of
from tune.spec.sweep_config import SweepConfig

CHANGEABLE = [  # by --set on resume
    *(f"study.{name}" for name in ("trials", "time_budget", "gpu_hours", "target", "enough", "confirm")),
    *(f"resources.{name}" for name in ("max_failures", "fail_fast", "report_timeout", "reuse_processes")),
    "train.labels",  # of a run of an older version, which did not know it; the cases are compared all the same
]


def refuse_unchangeable(overrides: Sequence[str]) -> None:
    """Raise InputError for a KEY=VALUE whose key is not in CHANGEABLE."""
    for text in overrides:
        if (key := text.partition("=")[0].strip()) not in CHANGEABLE:
            allowed = ", ".join(CHANGEABLE)
            raise InputError(
                f"--set {text}: {key} cannot change on resume, only {allowed}{did_you_mean(key, CHANGEABLE)}"
            )


def check_resumable(config: SweepConfig, run_dir: Path) -> None:
    """Raise InputError if a run is of another version or damaged, or if its snapshot has gone on elsewhere.

    Also if its file of labels is gone.
    """
    paths = RunDir(run_dir)
    if (version := config.record.format) != CHECKPOINT_FORMAT:
        raise InputError(
            f"{run_dir} was begun by another version of voxtune: its checkpoints are of format {version}, here of "
            f"{CHECKPOINT_FORMAT}; go on with that version, which {paths.config} names, or launch again"
        )
    run = read_run(run_dir)
    if lost := run.orphan_trial_dirs:
        raise InputError(f"{paths.journal} has no trial for {', '.join(lost)}: it was cut; restore it")
    run.split()
    load_contents(paths.contents)
    run.require_file("labels")
    storage = config.record.storage
    if storage is not None and is_uri(storage):
        check_storage(storage, name_of(run), config.record.attempts)


def with_prepared_data(config: SweepConfig, run_dir: Path, data_dir: Path | Uri | None) -> SweepConfig:
    """Prepare the cases of a run, and return its config with their folder and cache.

    Args:
        data_dir: where the cases are now, with a new cache; None: where they were.

    Raises:
        InputError: if the folder is missing, or has other cases than those that the run began with.
    """
    assert config.record.cache_dir is not None
    cache: Path | None = Path(config.record.cache_dir)
    if data_dir is not None:
        train = {name: value for name, value in config.train.items() if name != "cache_dir"}
        train["data_dir"], cache = str(data_dir), None
        config = config.with_train(train)
    cases = place_of_data(config.fixed("data_dir"))
    if not is_there(cases):
        raise InputError(f"{cases}: no such folder; pass the folder of the cases with --data")
    base = config.base_config(split_file=RunDir(run_dir).split, cache_dir=cache)
    data = prepare_data(base, begun=True, begun_with=config.record.voxel_size)
    contents = RunDir(run_dir).contents
    if digest_of(data) != config.record.data:
        changed = changed_cases(data.contents, load_contents(contents))
        raise InputError(
            f"{cases}: the cases are not those that {run_dir} began with{changed and f': {changed}'}; restore them, or "
            "give their --data"
        )
    if not contents.exists():  # in a run of an older version
        save_contents(data, contents)
    return config.with_record(cache_dir=str(data.folder))


def all_ended(config: SweepConfig, count: int) -> str:
    """Return what is printed if no trial is left to run. count: of the trials that the sweep has had."""
    if config.budget.trials > count:
        why = f"the space has no other recipe, though study.trials is {config.budget.trials}"
    else:
        why = "add some with --trials"
    return f"all {count} trials have ended; {why}"
