"""Launch and resume a sweep: a Ray Tuner over the study in the run's journal."""

from __future__ import annotations

import secrets
import shlex
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray import tune as ray_tune
from ray.tune.error import TuneError

from trainable.core.errors import InputError
from trainable.core.files import atomic_write_text, lock_folder, wait_for_exclusive_lock
from trainable.core.options import did_you_mean
from trainable.data.prepare import prepare_data
from trainable.data.split import save_split
from trainable.training import checkpoint
from tune.driver.cluster import Cluster, Slots, resolve_auto_gpu
from tune.driver.recorder import Recorder, sync_outputs
from tune.driver.scheduler import RungScheduler
from tune.driver.searcher import WORKERS, OptunaSearcher
from tune.driver.stopping import SweepStopper
from tune.driver.watchdog import HangWatchdog
from tune.driver.worker import Fit, fit_to_storage, run_trial
from tune.run.import_trials import change_space, warm_start
from tune.run.provenance import digest_of, provenance
from tune.run.report import LiveTable, make_console
from tune.run.results import STUDY_FILE, Run, read_run, study_file
from tune.run.retention import NUM_TO_KEEP, Retention, check_disk_space
from tune.run.snapshot import Snapshot, check_storage, is_uri, name_of
from tune.search.journal import Journal
from tune.search.journal_file import JOURNAL
from tune.spec.sweep_config import SweepConfig
from tune.spec.sweep_file import dump, load_sweep_config

CHANGEABLE = [
    *(f"study.{name}" for name in ("trials", "time_budget", "gpu_hours", "target")),
    *(f"resources.{name}" for name in ("max_failures", "fail_fast", "report_timeout", "reuse_processes")),
]
SPLIT = "split.json"
WORKER_EXIT_TIMEOUT = 60  # seconds that the workers of a driver that was killed may take to end


def launch(
    config: SweepConfig,
    run_dir: Path,
    *,
    cluster: Cluster | None = None,
    storage: str | None = None,
    params: tuple[dict[str, Any], ...] = (),
    earlier: Sequence[Path] = (),
    fit: Fit = fit_to_storage,
) -> Run:
    """Start a sweep in a new folder and run it to its end; returns what it found.

    cluster: entered before or not; by default one of this machine alone. params: Optuna parameters to try first; by
    default those of the default recipe. earlier: runs whose trials it begins with. fit: what trains a recipe.
    """
    ensure_new(run_dir)
    if storage is not None and is_uri(storage):
        check_storage(storage, run_dir.name)
    elif storage is not None:
        storage = str(Path(storage).resolve())
    config = with_absolute_paths(config)
    if (pretrained := config.fixed("pretrained")) is not None:
        checkpoint.load_weights(Path(pretrained))
    with cluster or Cluster() as cluster:
        cluster.wait()  # before cases are prepared, which takes all cores: Ray gives up on a start that takes long
        data = prepare_data(config.base_config())
        if not data.split.val:
            raise InputError(
                "the split has no validation cases to score trials by; raise train.val_fraction or add cases"
            )
        with lock_folder(run_dir):
            ensure_new(run_dir)  # another launch may have ended meanwhile
            config = resolve_auto_gpu(config, make_console().print)
            slots = Slots(config)
            make_console().print(check_disk_space(config, storage or str(run_dir / "ray"), slots.count()))
            save_split(data.split, run_dir / SPLIT)
            config = config.with_record(storage=storage, attempts=[], cache_dir=str(data.folder), **provenance(data))
            if is_uri(storage):
                config = config.with_record(name=run_dir.name)
            warm_start(Journal(run_dir, config, reset=True), earlier)
            write_config(config, run_dir)
            return sweep(Run(run_dir, config, []), slots, params, fit)


def ensure_new(run_dir: Path) -> None:
    """Raise InputError for the folder of a sweep, of a training or of cases.

    A log may lie there, as may the journal and the split of a launch that failed before its first trial.
    """
    if (run_dir / STUDY_FILE).exists():
        go_on = f"voxtune resume {shlex.quote(str(run_dir))}"
        raise InputError(f"{run_dir} holds a sweep already; go on with `{go_on}` or take another --out")
    other = sorted(path.name for path in run_dir.glob("*") if path.is_dir())
    other += [SPLIT] * ((run_dir / SPLIT).exists() and not (run_dir / JOURNAL).exists())
    if other:
        raise InputError(f"{run_dir} holds {other[0]} already, which is of something else; take another --out")


def resume(
    run_dir: Path,
    *,
    cluster: Cluster | None = None,
    overrides: Sequence[str] = (),
    space: str | None = None,
    data_dir: Path | None = None,
    fit: Fit = fit_to_storage,
) -> Run:
    """Go on with an interrupted sweep, or extend it.

    cluster: as for launch. overrides: those of CHANGEABLE, anew. space: a YAML whose space the sweep goes on in, with
    its budgets. data_dir: where the cases lie now.
    """
    for text in overrides if space is None else ():
        if (key := text.partition("=")[0].strip()) not in CHANGEABLE:
            allowed = ", ".join(CHANGEABLE)
            raise InputError(
                f"--set {text}: {key} cannot change on resume, only {allowed}{did_you_mean(key, CHANGEABLE)}"
            )
    path = study_file(run_dir)
    with lock_folder(run_dir):
        config = load_sweep_config(path, overrides if space is None else ())
        if (found := config.record.get("format")) != checkpoint.FORMAT:
            raise InputError(
                f"{run_dir} was begun by another version of voxtune: its checkpoints are of format {found}, here of "
                f"{checkpoint.FORMAT}; go on with that version, which {path} names, or launch anew"
            )
        begun = read_run(run_dir)
        if lost := begun.orphan_trial_dirs:
            raise InputError(f"{run_dir / JOURNAL} knows nothing of {', '.join(lost)}: it was cut; restore it")
        begun.split()
        if is_uri(config.record.get("storage")):
            check_storage(config.record["storage"], name_of(Run(run_dir, config, [])), config.record["attempts"])
        config = with_prepared_data(config, run_dir, data_dir)
        if space is not None:
            config = change_space(read_run(run_dir, config), space, overrides)
        found = read_run(run_dir, config)
        if len(found.own_trials) > config.budget.trials:
            there = len(found.own_trials)
            raise InputError(
                f"study.trials is {config.budget.trials}, but {run_dir} has {there} already; ask for no fewer"
            )
        if not found.unfinished:
            make_console().print(f"all {config.budget.trials} trials have ended; add some with --trials")
            write_config(config, run_dir)
            return finalize(found, Snapshot(found, print))
        with cluster or Cluster() as cluster:
            cluster.wait()
            config = resolve_auto_gpu(config, make_console().print)
            slots = Slots(config)
            write_config(config, run_dir)
            return sweep(Run(run_dir, config, []), slots, fit=fit)


def sweep(run: Run, slots: Slots, params: tuple[dict[str, Any], ...] = (), fit: Fit = fit_to_storage) -> Run:
    """Run what is left of a sweep on the cluster that is connected."""
    console, config = make_console(), run.config
    journal = Journal(run.folder, config)
    journal.enqueue_first(params or (config.space.default_params(),))
    searcher = OptunaSearcher(journal, run, slots)
    stopper = SweepStopper(read_run(run.folder))
    snapshot = Snapshot(run, lambda text: console.print(text, markup=False, soft_wrap=True))
    if searcher.remaining and not stopper.stop_all():
        wait_for_exclusive_lock(run.folder / WORKERS, WORKER_EXIT_TIMEOUT)
        run = start_attempt(run)
        snapshot.begin()
        with LiveTable(console, config.fixed("epochs"), config.budget.trials) as table, stopper.handle_signals():
            recorder = Recorder(run, journal, table, stopper, snapshot)
            with recorder.worker:
                run_trials(tuner(run, journal, searcher, recorder, fit), stopper)
    try:
        journal.finalize_ended()
        found = finalize(read_run(run.folder), snapshot)
    except OSError as error:
        stopper.error = stopper.error or str(error)
        found = read_run(run.folder)
    stopper.exit(console, found)
    return found


def finalize(run: Run, snapshot: Snapshot) -> Run:
    """Bring RUN/best, the checkpoints and the snapshot up to date."""
    sync_outputs(run, snapshot, Retention(run))
    snapshot.update()
    return run


def run_trials(tuner: ray_tune.Tuner, stopper: SweepStopper) -> None:
    """Run the Tuner; a disk that is full and a cluster that is lost end the sweep, its trials resumable."""
    try:
        tuner.fit()
    except (TuneError, OSError, ray.exceptions.RayError) as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OSError | ray.exceptions.RayError):
            cause = cause.__cause__ or cause.__context__
        if cause is None and not stopper.signal:
            raise
        stopper.error = stopper.error or str(cause)


def start_attempt(run: Run) -> Run:
    """Note the folder below the run's storage that this launch or resume writes its checkpoints into."""
    name = f"{name_of(run)}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"  # a storage may be shared
    config = run.config.with_record(attempts=[*run.config.record["attempts"], name])
    write_config(config, run.folder)
    return replace(run, config=config)


def tuner(run: Run, journal: Journal, searcher: OptunaSearcher, recorder: Recorder, fit: Fit) -> ray_tune.Tuner:
    """The Tuner of one launch or resume. Its storage is its own, so that what a dead driver's workers still write
    cannot mix with it."""
    resources = run.config.resources
    trainable = partial(run_trial, fit=fit)
    return ray_tune.Tuner(
        ray_tune.with_resources(trainable, {"cpu": resources.cpu, "gpu": resources.gpu_share}),
        tune_config=ray_tune.TuneConfig(
            search_alg=searcher,
            scheduler=RungScheduler(journal, run.config, recorder.write),
            num_samples=searcher.remaining,
            reuse_actors=resources.reuse_processes,
            trial_name_creator=lambda trial: f"trial_{trial.config['number']:04d}",
            trial_dirname_creator=lambda trial: f"{trial.config['number']:04d}",
        ),
        run_config=ray_tune.RunConfig(
            name=run.config.record["attempts"][-1],
            storage_path=run.storage,
            failure_config=ray_tune.FailureConfig(max_failures=resources.max_failures),
            checkpoint_config=ray_tune.CheckpointConfig(num_to_keep=None if is_uri(run.storage) else NUM_TO_KEEP),
            callbacks=[recorder, HangWatchdog(journal, resources.report_timeout, recorder.table)],
            stop=recorder.stopper,
            verbose=0,
        ),
    )


def with_prepared_data(config: SweepConfig, run_dir: Path, data_dir: Path | None) -> SweepConfig:
    """The study of a run whose cases are found and prepared: in data_dir, where one is given, its cache beside it.

    Raises:
        InputError: where they are not the cases that the run began with.
    """
    cache: Path | None = Path(config.record["cache_dir"])
    if data_dir is not None:
        train = {name: value for name, value in config.train.items() if name != "cache_dir"}
        train["data_dir"], cache = str(data_dir), None
        config = config.with_train(train)
    cases = Path(config.fixed("data_dir"))
    if not cases.is_dir():
        raise InputError(f"{cases}: no such folder; say where the cases lie now with --data")
    data = prepare_data(config.base_config(split_file=run_dir / SPLIT, cache_dir=cache))
    if digest_of(data) != config.record["data"]:
        raise InputError(
            f"{cases}: the cases are not those that {run_dir} began with; restore them, or give their --data"
        )
    return config.with_record(cache_dir=str(data.folder))


def with_absolute_paths(config: SweepConfig) -> SweepConfig:
    """The study with the paths under `train:` made absolute: Ray runs trials in folders of its own."""
    paths = ("data_dir", "cache_dir", "split_file", "pretrained")
    train = {
        name: str(Path(value).resolve()) if name in paths and value is not None else value
        for name, value in config.train.items()
    }
    return config.with_train(train)


def write_config(config: SweepConfig, run_dir: Path) -> None:
    """Write study.yaml, whole or not at all."""
    atomic_write_text(run_dir / STUDY_FILE, dump(config))
