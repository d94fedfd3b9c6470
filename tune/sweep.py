"""Launch and resume a sweep: a Ray Tuner over the study in the run's journal."""

from __future__ import annotations

import logging
import os
import platform
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import ray
from ray import tune as ray_tune
from rich.console import Console

from trainable.cache import data_digest
from trainable.cases import save_split
from trainable.config import InputError
from trainable.data import Data, prepare_data
from trainable.options import nearest
from trainable.parallel import locked, write_whole
from trainable.trial import train_trial
from tune.asha import Asha
from tune.journal import Journal
from tune.progress import LiveTable, make_console
from tune.recorder import Recorder, local_folder
from tune.results import STUDY_FILE, Run, read_run, update_best
from tune.retention import NUM_TO_KEEP, Retention, check_room
from tune.searcher import Slots, StudySearcher
from tune.study import StudyConfig, dump, load_study

CHANGEABLE = ["study.trials", "study.time_budget", "study.gpu_hours", "study.target", "resources.max_failures"]
PACKAGES = ("voxtune", "torch", "ray", "optuna", "monai", "nibabel", "numpy")
# Ray reads these when it starts; what the user has set stays.
RAY_ENVIRONMENT = {
    "RAY_AUTH_MODE": "disabled",  # a local cluster listens on this machine only
    "RAY_AIR_NEW_OUTPUT": "0",  # the new output prints a box even where it is told to be silent
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the recorder writes the logs
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ending handles it, and SIGTERM
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "60",  # a stopped trial may take a while to end its reading processes
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


def launch(
    study: StudyConfig, run: Path, *, address: str | None, storage: str | None, params: tuple[dict[str, Any], ...] = ()
) -> Run:
    """Start a sweep in a new folder and run it to its end; returns what it found.

    params: Optuna parameters to try first; by default those of the default recipe.
    """
    if (run / STUDY_FILE).exists():
        raise InputError(f"{run} holds a sweep already; go on with `voxtune resume {run}` or take another --out")
    study = with_whole_paths(study)
    data = prepare_data(study.base_config())
    if not data.split.val:
        raise InputError("the split has no validation cases to score trials by; raise train.val_fraction or add cases")
    if storage is not None and "://" not in storage:
        storage = str(Path(storage).resolve())
    with cluster(study, address) as slots, locked(run):
        make_console().print(check_room(study, storage or str(run / "ray"), slots.count()))
        save_split(data.split, run / "split.json")
        record = {"storage": storage, "attempts": [], "cache_dir": str(data.folder), **provenance(data)}
        study = study.model_copy(update={"record": record})
        write_study(study, run)
        return sweep(Run(run, study, []), slots, params)


def resume(run: Path, *, address: str | None, overrides: Sequence[str] = ()) -> Run:
    """Go on with an interrupted sweep, or extend it: overrides may set those of CHANGEABLE anew."""
    for text in overrides:
        if (key := text.partition("=")[0].strip()) not in CHANGEABLE:
            allowed = ", ".join(CHANGEABLE)
            raise InputError(f"--set {text}: {key} cannot change on resume, only {allowed}{nearest(key, CHANGEABLE)}")
    read_run(run)
    study = load_study(run / STUDY_FILE, overrides)
    with locked(run):
        cache = Path(study.record["cache_dir"])
        data = prepare_data(study.base_config(split_file=run / "split.json", cache_dir=cache))
        if digest_of(data) != study.record["data"]:
            raise InputError(f"{study.option('data_dir')}: the cases are not those that {run} began with; restore them")
        with cluster(study, address) as slots:
            if overrides:
                write_study(study, run)
            return sweep(Run(run, study, []), slots)


def sweep(run: Run, slots: Slots, params: tuple[dict[str, Any], ...] = ()) -> Run:
    """Run what is left of a sweep on the cluster that is connected."""
    console, study = make_console(), run.study
    journal = Journal(run.folder, study)
    journal.enqueue_first(params or (study.space.default_params(),))
    searcher = StudySearcher(journal, run, slots)
    ending = Ending(read_run(run.folder))
    if searcher.left and not ending.stop_all():
        epochs = study.option("epochs")
        run = begin_attempt(run)
        with LiveTable(console, epochs, study.study.trials) as table, ending.listening():
            recorder = Recorder(run, journal, table)
            tuner(run, journal, searcher, recorder, ending).fit()
        journal.settle()
    elif not searcher.left:
        console.print(f"all {study.study.trials} trials have ended; add some with --trials")
    found = read_run(run.folder)
    update_best(found, local_folder)
    Retention(found).tidy(found)
    ending.say(console, found)
    return found


def begin_attempt(run: Run) -> Run:
    """Note the folder below the run's storage that this launch or resume writes its checkpoints into."""
    name = f"{run.folder.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    record = {**run.study.record, "attempts": [*run.study.record["attempts"], name]}
    study = run.study.model_copy(update={"record": record})
    write_study(study, run.folder)
    return replace(run, study=study)


def tuner(run: Run, journal: Journal, searcher: StudySearcher, recorder: Recorder, ending: Ending) -> ray_tune.Tuner:
    """The Tuner of one launch or resume. Its storage is its own, so that what a dead driver's workers still write
    cannot mix with it."""
    study = run.study
    need: dict[str, float] = {"cpu": study.resources.cpu, "gpu": study.resources.gpu}
    asha = Asha(journal, study.rungs, study.early_stopping.reduction_factor)
    return ray_tune.Tuner(
        ray_tune.with_resources(train_trial, need),
        tune_config=ray_tune.TuneConfig(
            search_alg=searcher,
            scheduler=asha,
            num_samples=searcher.left,
            reuse_actors=True,
            trial_name_creator=lambda trial: f"trial_{trial.config['number']:04d}",
            trial_dirname_creator=lambda trial: f"{trial.config['number']:04d}",
        ),
        run_config=ray_tune.RunConfig(
            name=study.record["attempts"][-1],
            storage_path=run.storage,
            failure_config=ray_tune.FailureConfig(max_failures=study.resources.max_failures),
            checkpoint_config=ray_tune.CheckpointConfig(num_to_keep=NUM_TO_KEEP),
            callbacks=[recorder],
            stop=ending,
            verbose=0,
        ),
    )


@contextmanager
def cluster(study: StudyConfig, address: str | None) -> Iterator[Slots]:
    """A Ray cluster, that of `address` or one of this machine alone, with room for a trial at least."""
    start_ray(address)
    try:
        slots = Slots(study)
        if not slots.count():
            cpus, gpus = (ray.cluster_resources().get(kind, 0) for kind in ("CPU", "GPU"))
            raise InputError(
                f"resources ask for {study.resources.cpu} CPUs and {study.resources.gpu:g} GPUs a trial; the cluster "
                f"has {cpus:g} and {gpus:g} in all; lower them with --set resources.gpu=... --set resources.cpu=..."
            )
        yield slots
    finally:
        ray.shutdown()


def start_ray(address: str | None) -> None:
    """Connect to a cluster, or start one on this machine."""
    for name, value in RAY_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for name in ("ray", "ray.tune", "ray.data", "ray.train"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    if address is None:  # "local": also where RAY_ADDRESS is set
        ray.init(address="local", include_dashboard=False, object_store_memory=200 * 2**20, **options)
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        if port.isdigit():  # Ray itself tries for minutes
            socket.create_connection((host, int(port)), timeout=10).close()
        packages = [str(Path(__file__).parent), str(Path(__file__).parent.parent / "trainable")]
        ray.init(address=address, runtime_env={"py_modules": packages}, **options)
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"--address {address}: no Ray cluster answers there ({error}); ask `ray status`") from None


class Ending(ray_tune.Stopper):
    """Ends a sweep cleanly, its trials resumable: at a signal, when a budget is spent or the target is reached."""

    def __init__(self, run: Run) -> None:
        self.study = run.study
        self.received = 0  # the signal
        self.started = time.monotonic()
        self.gpu_seconds = sum(trial.seconds for trial in run.trials) * self.study.resources.gpu
        self.best = max((trial.score or 0.0 for trial in run.trials if trial.comparable), default=0.0)

    def __getstate__(self) -> dict[str, Any]:
        """Nothing for Ray's snapshot of its tuner, which voxtune never reads."""
        return {}

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Called by Ray with each report; no single trial is ended here."""
        self.gpu_seconds += result["time_this_iter_s"] * self.study.resources.gpu
        if result["end_reason"] in ("epochs", "patience"):
            self.best = max(self.best, result["best_score"])
        return False

    def stop_all(self) -> bool:
        """Asked by Ray after each step."""
        return bool(self.reason())

    def reason(self) -> str:
        """Why the sweep ends before its last trial; nothing while it goes on."""
        asked = self.study.study
        if self.received:
            return signal.Signals(self.received).name
        if asked.time_budget is not None and time.monotonic() - self.started > asked.time_budget:
            return "study.time_budget, which is over"
        if asked.gpu_hours is not None and self.gpu_seconds >= asked.gpu_hours * 3600:
            return f"study.gpu_hours: {self.gpu_seconds / 3600:.2f} of {asked.gpu_hours:g} are spent"
        if asked.target is not None and self.best >= asked.target:
            return f"study.target: a finished trial has {self.best:.4f}, and {asked.target:g} was asked for"
        return ""

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take Ctrl-C and SIGTERM; a second one is not waited for."""

        def note(number: int, _: Any) -> None:
            self.received = number
            for each in before:
                signal.signal(each, before[each])

        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)

    def say(self, console: Console, run: Run) -> None:
        """Say why the sweep ended before its last trial, and how to go on; end the process after a signal."""
        if (reason := self.reason()) and (self.received or run.unfinished):
            more = "" if self.received or "time" in reason else ", with another --set study.KEY=VALUE"
            text = f"stopped by {reason}; go on with: voxtune resume {run.folder}{more}"
            console.print(text, markup=False, soft_wrap=True)
        if self.received:
            raise SystemExit(128 + self.received)


def with_whole_paths(study: StudyConfig) -> StudyConfig:
    """The study with the paths under `train:` made absolute: Ray runs trials in folders of its own."""
    paths = ("data_dir", "cache_dir", "split_file", "pretrained")
    train = {name: str(Path(value).resolve()) if name in paths else value for name, value in study.train.items()}
    return study.model_copy(update={"train": train})


def write_study(study: StudyConfig, run: Path) -> None:
    """Write study.yaml, whole or not at all."""
    write_whole(run / STUDY_FILE, dump(study))


def digest_of(data: Data) -> str:
    """The hash of the cases of all parts of the split."""
    return data_digest(data.folder, sorted({*data.split.train, *data.split.val, *data.split.test}))


def provenance(data: Data) -> dict[str, Any]:
    """What a sceptical reader asks for: versions, commit, data, split."""
    return {
        "split": data.split.digest(),
        "data": digest_of(data),
        "skipped_cases": list(data.skipped),
        "commit": commit(),
        "versions": {name: version(name) for name in PACKAGES} | {"python": platform.python_version()},
    }


def commit() -> str:
    """The git commit of this code, and whether it was changed since; "none" for an installed wheel."""
    git = ["git", "-C", str(Path(__file__).parent)]
    head = subprocess.run([*git, "rev-parse", "--verify", "HEAD"], capture_output=True, text=True, check=False)
    if head.returncode:
        return "none"
    changes = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=False)
    return head.stdout.strip() + ("+changes" if changes.stdout.strip() else "")


def version(package: str) -> str:
    """The installed version of a package."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
