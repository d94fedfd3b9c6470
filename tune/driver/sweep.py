"""Launch and resume a sweep: a Ray Tuner that runs the trials of the run's journal.

launch   new folder, cluster, cases, journal, study.yaml, then sweep
resume   checks of the folder, cases, cluster, study.yaml, then sweep
sweep    run_tuner until all trials have ended or something ends the sweep, then finalize
"""

from __future__ import annotations

import secrets
import shlex
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from trainable.core.errors import InputError
from trainable.core.files import atomic_write_text, user_path
from trainable.core.locks import lock_folder, wait_for_exclusive_lock
from trainable.core.logger import logger
from trainable.core.options import absolute_path, path_options
from trainable.data.empty_regions import check_regions
from trainable.data.prepare import Data, prepare_data
from trainable.data.split import save_split
from trainable.training import checkpoint
from trainable.training.seen_cases import cases_by_part, history_of_pretrained
from tune.driver.cluster import Cluster, Slots, resolve_gpu, running_or_new
from tune.driver.recorder import LostCheckpointError, Recorder, sync_outputs
from tune.driver.resource_wait import ResourceWait
from tune.driver.resumable import check_resumable, refuse_unchangeable, with_prepared_data
from tune.driver.rung_scheduler import OnReport, RungScheduler
from tune.driver.searcher import OptunaSearcher
from tune.driver.storage_watch import StorageWatch
from tune.driver.sweep_stopper import SignalKeeper, SweepStopper
from tune.driver.tuner import make_tuner, run_tuner
from tune.driver.watchdog import HangWatchdog
from tune.driver.worker import Fit, fit_to_storage
from tune.run.import_trials import change_space, warm_start
from tune.run.provenance import provenance, save_contents
from tune.run.results import Run, ensure_run, read_run
from tune.run.retention import Retention, check_disk_space
from tune.run.run_dir import RunDir, resume_command
from tune.run.snapshot import Snapshot, check_storage, is_uri, name_of
from tune.search.journal import Journal
from tune.spec.sweep_config import SweepConfig
from tune.spec.sweep_file import dump, load_sweep_config
from tune.terminal.live_screen import SweepScreen

WORKER_EXIT_TIMEOUT = 60  # seconds that the processes of a killed driver's trials may take to end


def launch(
    config: SweepConfig,
    run_dir: Path,
    *,
    cluster: Cluster | None = None,
    address: str | None = None,
    storage: str | None = None,
    params: tuple[dict[str, Any], ...] = (),
    earlier: Sequence[Path] = (),
    fit: Fit = fit_to_storage,
    on_report: OnReport | None = None,
) -> Run:
    """Start a sweep in a new folder and run it until all trials have ended, a budget is spent or the target is reached.

    Args:
        cluster: an entered Cluster, which is left open; None for a new Cluster(address).
        address: of a running Ray cluster; None to start one on this machine.
        storage: folder or URI for the checkpoints; by default RUN/ray.
        params: Optuna parameters to try first; by default those of Space.default_params.
        earlier: folders of runs whose trials are imported first, see warm_start.
        fit: called in the process of each trial to train its recipe.
        on_report: called in this process with each report of a trial and the decision on it.

    Returns:
        The run as it is at the end.

    Raises:
        InputError: if the folder, the data, the storage, the address or the resources cannot be used.
        SystemExit: after a signal, a full disk, changed cases, a lost cluster, or a failed trial with fail_fast.
    """
    ensure_new(run_dir)
    if storage is not None and is_uri(storage):
        check_storage(storage, run_dir.name)
    elif storage is not None:
        storage = str(user_path(storage).resolve())
    config = with_absolute_paths(config)
    cases = config.fixed("data_dir")
    if cases is not None and not Path(cases).is_dir():  # before the lock makes RUN, which may be the same
        raise InputError(f"{cases}: no such folder; give the folder of the cases with --data")
    if (pretrained := config.fixed("pretrained")) is not None:
        checkpoint.load_weights(Path(pretrained))
    with lock_folder(run_dir), running_or_new(cluster, address) as cluster:
        ensure_new(run_dir)  # another launch may have ended meanwhile
        cluster.wait()  # before cases are prepared, which takes all cores: Ray gives up on a start that takes long
        data = prepare_data(config.base_config())
        if not data.split.val:
            raise InputError(
                "the split has no validation cases to score trials by; raise train.val_fraction or add cases"
            )
        check_regions(data.folder, data.split)
        seen = history_of_pretrained(config.base_config(), data).seen_of(cases_by_part(data))
        config = resolve_gpu(config)
        slots = Slots(config.resources)
        logger.info(check_disk_space(config, storage or str(run_dir / "ray"), slots.count()))
        begin_run(config, run_dir, data, storage, earlier, seen)
        return sweep(read_run(run_dir), slots, fit, params=params, on_report=on_report)


def begin_run(
    config: SweepConfig,
    run_dir: Path,
    data: Data,
    storage: str | None,
    earlier: Sequence[Path],
    seen: dict[str, list[str]],
) -> None:
    """Write the files of a new run: journal, split, contents of the cases, and last study.yaml.

    seen: by part the names of the cases that the pretrained weights have seen; the other arguments are those of launch.
    """
    config = config.with_record(storage=storage, attempts=[], cache_dir=str(data.folder), **provenance(data))
    if seen:
        config = config.with_record(seen_cases=seen)
    if is_uri(storage):
        config = config.with_record(name=run_dir.name)
    journal = Journal(run_dir, config, reset=True)  # first: ensure_new takes a split without a journal for another's
    save_split(data.split, RunDir(run_dir).split)
    save_contents(data, RunDir(run_dir).contents)
    warm_start(journal, earlier)
    write_config(config, run_dir)


def ensure_new(run_dir: Path) -> None:
    """Raise InputError if a folder has a study.yaml, a sub-folder, or a split.json without a journal.

    It may have other files, such as a log, and the journal and split of a launch that failed before its first trial.
    """
    paths = RunDir(run_dir)
    if paths.config.exists():
        raise InputError(
            f"{run_dir} holds a sweep already; go on with `{resume_command(run_dir)}` or take another --out"
        )
    other = sorted(path.name for path in run_dir.glob("*") if path.is_dir())
    other += [paths.split.name] * (paths.split.exists() and not paths.journal.exists())
    if other:
        raise InputError(f"{run_dir} holds {other[0]} already, which is of something else; take another --out")


def resume(
    run_dir: Path,
    *,
    cluster: Cluster | None = None,
    address: str | None = None,
    overrides: Sequence[str] = (),
    space: str | None = None,
    data_dir: Path | None = None,
    fit: Fit = fit_to_storage,
    on_report: OnReport | None = None,
) -> Run:
    """Go on with an interrupted sweep, or extend it; if all its trials have ended, only finalize it.

    Args:
        cluster, address, fit, on_report: as for launch.
        overrides: KEY=VALUE; without `space` of the keys in CHANGEABLE, else of any key of that YAML.
        space: a YAML, or the name of a shipped one, to go on with, see change_space.
        data_dir: where the cases are now, if they were moved.

    Returns, Raises: as launch; InputError also if the run is damaged, in use or of another version.
    """
    refuse_unchangeable(overrides if space is None else ())
    paths = ensure_run(run_dir)
    with lock_folder(run_dir):
        config = load_sweep_config(paths.config, overrides if space is None else ())
        check_resumable(config, run_dir)
        config = with_prepared_data(config, run_dir, data_dir)
        if space is not None:
            config = change_space(read_run(run_dir, config), space, overrides)
        run = read_run(run_dir, config)
        if (count := len(run.own_trials)) > config.budget.trials:
            raise InputError(
                f"study.trials is {config.budget.trials}, but {run_dir} has {count} already; choose at least {count}"
            )
        if not run.unfinished:
            left = config.budget.trials - count
            why = (
                f"the space has no other recipe, though study.trials is {count + left}"
                if left
                else "add some with --trials"
            )
            logger.info(f"all {count} trials have ended; {why}")
            write_config(config, run_dir)
            return finalize(run, Snapshot(run))
        run.require_file("pretrained")
        with running_or_new(cluster, address) as cluster:
            cluster.wait()
            config = resolve_gpu(config)
            slots = Slots(config.resources)
            write_config(config, run_dir)
            return sweep(replace(run, config=config), slots, fit, on_report=on_report)


def sweep(
    run: Run,
    slots: Slots,
    fit: Fit = fit_to_storage,
    *,
    params: tuple[dict[str, Any], ...] = (),
    on_report: OnReport | None = None,
) -> Run:
    """Run what is left of a sweep on the connected cluster; return the run as it is at the end.

    Raises: as launch; InputError also if processes of a killed driver do not end, or the folder is moved meanwhile.
    """
    config = run.config
    journal = Journal(run.folder, config)
    journal.enqueue_first(params or (config.space.default_params(),))
    storage = StorageWatch(run.storage)
    searcher = OptunaSearcher(journal, run, slots, storage)
    stopper = SweepStopper(read_run(run.folder), storage)
    snapshot = Snapshot(run)
    if searcher.remaining and not stopper.stop_all():
        wait_for_exclusive_lock(run.dir.worker_lock, WORKER_EXIT_TIMEOUT)
        run = start_attempt(run)
        storage.begin(run.config.record.attempts[-1])
        snapshot.begin()
        with (
            SweepScreen(config, len(run.own_trials) + run.trials_left) as screen,
            stopper.handle_signals(),
        ):
            recorder = Recorder(run, journal, screen, stopper, snapshot)
            attempt = run.config.record.attempts[-1]
            scheduler = RungScheduler(journal, run.config, recorder.write, attempt, on_report)
            watchdog = HangWatchdog(journal, config.resources.report_timeout)
            callbacks = [SignalKeeper(stopper), recorder, watchdog, ResourceWait(journal, slots.need)]
            with recorder.worker:
                run_tuner(make_tuner(run, fit, searcher, scheduler, stopper, callbacks), stopper)
    if not run.dir.config.exists():
        raise InputError(
            f"{run.folder} was moved or deleted while the sweep ran; if it was moved, go on with "
            f"`{resume_command(Path('NEW_PLACE'))}`"
        )
    try:
        journal.finalize_ended()
        run = finalize(read_run(run.folder), snapshot)
    except (OSError, InputError) as error:
        if isinstance(error, InputError) and not storage.lost():
            raise
        stopper.error = stopper.error or str(error)
        run = read_run(run.folder)
    stopper.error = stopper.error or storage.lost()
    stopper.exit(run)
    return run


def finalize(run: Run, snapshot: Snapshot) -> Run:
    """Delete checkpoints that are not needed, bring RUN/best and the snapshot up to date; return the given run.

    If the winner's checkpoint is lost, this says so: the scores stand, and the recipe can be trained again.
    """
    try:
        sync_outputs(run, snapshot, Retention(run))
    except LostCheckpointError as error:
        left = "has the model of an earlier winner" if run.dir.best_model.exists() else "has no model"
        again = f"voxtune retrain {shlex.quote(str(run.folder))}"
        logger.warning(f"{error}; the scores stand, and {run.dir.best} {left}: train the recipe again with {again}")
    snapshot.update()
    return run


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


def write_config(config: SweepConfig, run_dir: Path) -> None:
    """Write RUN/study.yaml; a reader, also after a kill, sees the old file or the new one, whole."""
    atomic_write_text(RunDir(run_dir).config, dump(config))
