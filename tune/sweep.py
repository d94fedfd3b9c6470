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

from trainable import checkpoint
from trainable.cases import save_split
from trainable.config import InputError
from trainable.data import prepare_data
from trainable.options import nearest
from trainable.parallel import alone, locked, write_whole
from trainable.trial import Fit, fit_trial, train_trial
from tune.cluster import Cluster, Slots, with_gpus
from tune.early_stopping import RungScheduler
from tune.ending import Ending
from tune.hangs import HangWatch
from tune.journal import JOURNAL, Journal
from tune.progress import LiveTable, make_console
from tune.provenance import digest_of, provenance
from tune.recorder import Recorder, bring_up_to_date
from tune.results import STUDY_FILE, Run, read_run, study_file
from tune.retention import NUM_TO_KEEP, Retention, check_room
from tune.searcher import WORKERS, StudySearcher
from tune.snapshot import Snapshot, check_storage, is_uri, name_of
from tune.study import StudyConfig
from tune.study_file import dump, load_study
from tune.takeover import change_space, warm_start

CHANGEABLE = [
    *(f"study.{name}" for name in ("trials", "time_budget", "gpu_hours", "target")),
    *(f"resources.{name}" for name in ("max_failures", "fail_fast", "report_timeout", "reuse_processes")),
]
SPLIT = "split.json"
FENCE_TIMEOUT = 60  # seconds that the workers of a driver that was killed may take to end


def launch(
    study: StudyConfig,
    run: Path,
    *,
    cluster: Cluster | None = None,
    storage: str | None = None,
    params: tuple[dict[str, Any], ...] = (),
    earlier: Sequence[Path] = (),
    fit: Fit = fit_trial,
) -> Run:
    """Start a sweep in a new folder and run it to its end; returns what it found.

    cluster: entered before or not; by default one of this machine alone. params: Optuna parameters to try first; by
    default those of the default recipe. earlier: runs whose trials it begins with. fit: what trains a recipe.
    """
    refuse_used(run)
    if storage is not None and is_uri(storage):
        check_storage(storage, run.name)
    elif storage is not None:
        storage = str(Path(storage).resolve())
    study = with_whole_paths(study)
    if (pretrained := study.option("pretrained")) is not None:
        checkpoint.weights_in(Path(pretrained))
    with cluster or Cluster() as cluster:
        cluster.wait()  # before cases are prepared, which takes all cores: Ray gives up on a start that takes long
        data = prepare_data(study.base_config())
        if not data.split.val:
            raise InputError(
                "the split has no validation cases to score trials by; raise train.val_fraction or add cases"
            )
        with locked(run):
            refuse_used(run)  # another launch may have ended meanwhile
            study = with_gpus(study, make_console().print)
            slots = Slots(study)
            make_console().print(check_room(study, storage or str(run / "ray"), slots.count()))
            save_split(data.split, run / SPLIT)
            study = study.with_record(storage=storage, attempts=[], cache_dir=str(data.folder), **provenance(data))
            if is_uri(storage):
                study = study.with_record(name=run.name)
            warm_start(Journal(run, study, anew=True), earlier)
            write_study(study, run)
            return sweep(Run(run, study, []), slots, params, fit)


def refuse_used(run: Path) -> None:
    """Raise InputError for the folder of a sweep, of a training or of cases.

    A log may lie there, as may the journal and the split of a launch that failed before its first trial.
    """
    if (run / STUDY_FILE).exists():
        go_on = f"voxtune resume {shlex.quote(str(run))}"
        raise InputError(f"{run} holds a sweep already; go on with `{go_on}` or take another --out")
    other = sorted(path.name for path in run.glob("*") if path.is_dir())
    other += [SPLIT] * ((run / SPLIT).exists() and not (run / JOURNAL).exists())
    if other:
        raise InputError(f"{run} holds {other[0]} already, which is of something else; take another --out")


def resume(
    run: Path,
    *,
    cluster: Cluster | None = None,
    overrides: Sequence[str] = (),
    space: str | None = None,
    data_dir: Path | None = None,
    fit: Fit = fit_trial,
) -> Run:
    """Go on with an interrupted sweep, or extend it.

    cluster: as for launch. overrides: those of CHANGEABLE, anew. space: a YAML whose space the sweep goes on in, with
    its budgets. data_dir: where the cases lie now.
    """
    for text in overrides if space is None else ():
        if (key := text.partition("=")[0].strip()) not in CHANGEABLE:
            allowed = ", ".join(CHANGEABLE)
            raise InputError(f"--set {text}: {key} cannot change on resume, only {allowed}{nearest(key, CHANGEABLE)}")
    path = study_file(run)
    with locked(run):
        study = load_study(path, overrides if space is None else ())
        if (found := study.record.get("format")) != checkpoint.FORMAT:
            raise InputError(
                f"{run} was begun by another version of voxtune: its checkpoints are of format {found}, here of "
                f"{checkpoint.FORMAT}; go on with that version, which {path} names, or launch anew"
            )
        begun = read_run(run)
        if lost := begun.unknown_folders:
            raise InputError(f"{run / JOURNAL} knows nothing of {', '.join(lost)}: it was cut; restore it")
        begun.split()
        if is_uri(study.record.get("storage")):
            check_storage(study.record["storage"], name_of(Run(run, study, [])), study.record["attempts"])
        study = with_data(study, run, data_dir)
        if space is not None:
            study = change_space(read_run(run, study), space, overrides)
        found = read_run(run, study)
        if len(found.own_trials) > study.study.trials:
            there = len(found.own_trials)
            raise InputError(f"study.trials is {study.study.trials}, but {run} has {there} already; ask for no fewer")
        if not found.unfinished:
            make_console().print(f"all {study.study.trials} trials have ended; add some with --trials")
            write_study(study, run)
            return finish(found, Snapshot(found, print))
        with cluster or Cluster() as cluster:
            cluster.wait()
            study = with_gpus(study, make_console().print)
            slots = Slots(study)
            write_study(study, run)
            return sweep(Run(run, study, []), slots, fit=fit)


def sweep(run: Run, slots: Slots, params: tuple[dict[str, Any], ...] = (), fit: Fit = fit_trial) -> Run:
    """Run what is left of a sweep on the cluster that is connected."""
    console, study = make_console(), run.study
    journal = Journal(run.folder, study)
    journal.enqueue_first(params or (study.space.default_params(),))
    searcher = StudySearcher(journal, run, slots)
    ending = Ending(read_run(run.folder))
    snapshot = Snapshot(run, lambda text: console.print(text, markup=False, soft_wrap=True))
    if searcher.left and not ending.stop_all():
        alone(run.folder / WORKERS, FENCE_TIMEOUT)
        run = begin_attempt(run)
        snapshot.begin()
        with LiveTable(console, study.option("epochs"), study.study.trials) as table, ending.listening():
            recorder = Recorder(run, journal, table, ending, snapshot)
            with recorder.behind:
                run_trials(tuner(run, journal, searcher, recorder, fit), ending)
    try:
        journal.settle()
        found = finish(read_run(run.folder), snapshot)
    except OSError as error:
        ending.trouble = ending.trouble or str(error)
        found = read_run(run.folder)
    ending.say(console, found)
    return found


def finish(run: Run, snapshot: Snapshot) -> Run:
    """Bring RUN/best, the checkpoints and the snapshot up to date."""
    bring_up_to_date(run, snapshot, Retention(run))
    snapshot.update()
    return run


def run_trials(tuner: ray_tune.Tuner, ending: Ending) -> None:
    """Run the Tuner; a disk that is full and a cluster that is lost end the sweep, its trials resumable."""
    try:
        tuner.fit()
    except (TuneError, OSError, ray.exceptions.RayError) as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OSError | ray.exceptions.RayError):
            cause = cause.__cause__ or cause.__context__
        if cause is None and not ending.received:
            raise
        ending.trouble = ending.trouble or str(cause)


def begin_attempt(run: Run) -> Run:
    """Note the folder below the run's storage that this launch or resume writes its checkpoints into."""
    name = f"{name_of(run)}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"  # a storage may be shared
    study = run.study.with_record(attempts=[*run.study.record["attempts"], name])
    write_study(study, run.folder)
    return replace(run, study=study)


def tuner(run: Run, journal: Journal, searcher: StudySearcher, recorder: Recorder, fit: Fit) -> ray_tune.Tuner:
    """The Tuner of one launch or resume. Its storage is its own, so that what a dead driver's workers still write
    cannot mix with it."""
    resources = run.study.resources
    trainable = partial(train_trial, fit=fit)
    return ray_tune.Tuner(
        ray_tune.with_resources(trainable, {"cpu": resources.cpu, "gpu": resources.gpu_share}),
        tune_config=ray_tune.TuneConfig(
            search_alg=searcher,
            scheduler=RungScheduler(journal, run.study, recorder.write),
            num_samples=searcher.left,
            reuse_actors=resources.reuse_processes,
            trial_name_creator=lambda trial: f"trial_{trial.config['number']:04d}",
            trial_dirname_creator=lambda trial: f"{trial.config['number']:04d}",
        ),
        run_config=ray_tune.RunConfig(
            name=run.study.record["attempts"][-1],
            storage_path=run.storage,
            failure_config=ray_tune.FailureConfig(max_failures=resources.max_failures),
            checkpoint_config=ray_tune.CheckpointConfig(num_to_keep=None if is_uri(run.storage) else NUM_TO_KEEP),
            callbacks=[recorder, HangWatch(journal, resources.report_timeout, recorder.table)],
            stop=recorder.ending,
            verbose=0,
        ),
    )


def with_data(study: StudyConfig, run: Path, data_dir: Path | None) -> StudyConfig:
    """The study of a run whose cases are found and prepared: in data_dir, where one is given, its cache beside it.

    Raises:
        InputError: where they are not the cases that the run began with.
    """
    cache: Path | None = Path(study.record["cache_dir"])
    if data_dir is not None:
        train = {name: value for name, value in study.train.items() if name != "cache_dir"}
        train["data_dir"], cache = str(data_dir), None
        study = study.with_train(train)
    cases = Path(study.option("data_dir"))
    if not cases.is_dir():
        raise InputError(f"{cases}: no such folder; say where the cases lie now with --data")
    data = prepare_data(study.base_config(split_file=run / SPLIT, cache_dir=cache))
    if digest_of(data) != study.record["data"]:
        raise InputError(f"{cases}: the cases are not those that {run} began with; restore them, or give their --data")
    return study.with_record(cache_dir=str(data.folder))


def with_whole_paths(study: StudyConfig) -> StudyConfig:
    """The study with the paths under `train:` made absolute: Ray runs trials in folders of its own."""
    paths = ("data_dir", "cache_dir", "split_file", "pretrained")
    train = {
        name: str(Path(value).resolve()) if name in paths and value is not None else value
        for name, value in study.train.items()
    }
    return study.with_train(train)


def write_study(study: StudyConfig, run: Path) -> None:
    """Write study.yaml, whole or not at all."""
    write_whole(run / STUDY_FILE, dump(study))
