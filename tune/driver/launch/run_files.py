"""The files of a run: what a launch writes first, and study.yaml, which each launch and resume brings up to date."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from trainable.core.errors import InputError
from trainable.core.files import atomic_write_text, user_path
from trainable.core.options import absolute_path, path_options
from trainable.core.storage import is_uri
from trainable.data.prepare import Data
from trainable.data.split import Split, save_split
from trainable.training import checkpoint
from tune.driver.launch.launch_arguments import check_arguments
from tune.run.import_trials import warm_start
from tune.run.provenance import provenance, save_contents
from tune.run.results import Run
from tune.run.run_dir import RunDir
from tune.run.snapshot import check_storage, name_of
from tune.search.journal import Journal
from tune.spec.sweep_config import SweepConfig
from tune.spec.sweep_file import dump


def check_launch(config: SweepConfig, run_dir: Path, storage: str | None) -> str | None:
    """Check what a launch can tell before it locks a folder and starts a cluster; return the storage, made absolute.

    Raises:
        InputError: if the folder, the storage, the folder of the cases or the pretrained weights cannot be used.
    """
    config = with_absolute_paths(config)
    check_arguments(config, run_dir)  # before the lock makes RUN, which may be the folder of the cases
    if storage is not None and is_uri(storage):
        check_storage(storage, run_dir.name)
    elif storage is not None:
        storage = str(user_path(storage).resolve())
    if (pretrained := config.fixed("pretrained")) is not None:
        checkpoint.load_weights(Path(pretrained))
    return storage


def begin_run(
    config: SweepConfig,
    run_dir: Path,
    data: Data,
    storage: str | None,
    earlier: Sequence[Path],
    seen: dict[str, list[str]],
    note: str | None = None,
) -> None:
    """Write the files of a new run: journal, split, contents of the cases, and last study.yaml.

    seen: by part the names of the cases that the pretrained weights have seen; the other arguments are those of launch.
    """
    config = config.with_record(storage=storage, attempts=[], cache_dir=str(data.folder), **provenance(data))
    if note is not None:
        config = config.with_record(note=note)
    if seen:
        config = config.with_record(seen_cases=seen)
    if is_uri(storage):
        config = config.with_record(name=run_dir.name)
    journal = Journal(run_dir, config, reset=True)  # first: ensure_new takes a split without a journal for another's
    save_split(data.split, RunDir(run_dir).split)
    save_contents(data, RunDir(run_dir).contents)
    warm_start(journal, earlier)
    write_config(config, run_dir)


def start_attempt(run: Run) -> Run:
    """Name a folder below the storage for this attempt's checkpoints; write the name to study.yaml, return the run."""
    name = f"{name_of(run)}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"  # a storage may be shared
    config = run.config.with_record(attempts=[*run.config.record.attempts, name])
    write_config(config, run.folder)
    return replace(run, config=config)


def with_absolute_paths(config: SweepConfig) -> SweepConfig:
    """Return the config with the paths under `train:` made absolute: Ray runs trials in other folders."""
    train = {name: value for name, value in config.train.items() if name in path_options() and value is not None}
    return config.with_train({**config.train, **{name: str(absolute_path(name, train[name])) for name in train}})


def refuse_no_validation(split: Split) -> None:
    """Raise InputError if a split has no validation cases, by which trials are scored."""
    if not split.val:
        raise InputError("the split has no validation cases to score trials by; raise train.val_fraction or add cases")


def with_choices(config: SweepConfig, report: bool | None, notify: str | None) -> SweepConfig:
    """Return the config with the caller's choices noted for the next resume; None: as noted before.

    Of the URL of notify only that it was given is noted: it may be a secret.
    """
    if report is not None:
        config = config.with_record(report=report)
    return config if notify is None else config.with_record(notify=True)


def write_config(config: SweepConfig, run_dir: Path) -> None:
    """Write RUN/study.yaml; a reader, also after a kill, sees the old file or the new one, whole."""
    atomic_write_text(RunDir(run_dir).config, dump(config))
